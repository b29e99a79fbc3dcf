"""Draw README's picture: how reliable the default artifact's probabilities are before (MAP) and after (Laplace).

    python -m benchmarks.before_after

The bins are those of the artifact's ``report/evaluation.json``. The picture's metadata hold the artifact's digest, so
that a test sees when the picture is out of date.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.provenance import ARTIFACT, ROOT
from laplora.artifact.folder import read_artifact
from laplora.metrics.ranking import RiskCoverage
from laplora.metrics.scores import Evaluation, ReliabilityBin
from training.report.evaluation import reliability_figure

PICTURE = ROOT / "docs" / "pictures" / "before_after.png"


def main() -> None:
    """Write the picture."""
    evaluations = read_evaluations(ARTIFACT)
    both = {method: evaluations[method] for method in ("map", "laplace")}
    figure = reliability_figure(both, title=f"SST-2, {both['map'].rows} test rows, before and after")
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None, "Source": read_artifact(ARTIFACT).digest})


def read_evaluations(artifact: Path) -> dict[str, Evaluation]:
    """Return an artifact's recorded evaluations by method; each curve is the thinned one of the file."""
    recorded = json.loads((artifact / "report" / "evaluation.json").read_text(encoding="utf-8"))
    same = ("rows", "accuracy", "nll", "ece", "brier", "auroc_error", "auprc_error", "intervals")
    return {
        method: Evaluation(
            **{name: values[name] for name in same},
            reliability=tuple(ReliabilityBin(**b) for b in values["reliability"]),
            risk_coverage=RiskCoverage(**values["risk_coverage"], excess=values["excess_aurc"]),
        )
        for method, values in recorded.items()
    }


if __name__ == "__main__":
    main()
