"""Why a predictive answers, in words."""

from __future__ import annotations

from laplora.artifact.manifest import Manifest


def reason_for(manifest: Manifest, predictive: str) -> str:
    """Return why a predictive answers: why it is recommended, or that it was asked for, with its figures."""
    best = manifest.recommended
    if predictive == best.predictive:
        return best.reason
    losses = [best.table[name]["nll"] for name in (predictive, best.predictive) if name in best.table]
    reason = f"{predictive} was asked for"
    if len(losses) == 2:
        reason += (
            f"; its NLL is {losses[0]:.3f} nats on {manifest.calibration.rows} calibration rows, that of "
            f"{best.predictive}, which is recommended, {losses[1]:.3f}"
        )
    return reason
