"""How close the fast predictive comes to the exact one that it stands in for, on rows that neither has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from laplora.answers.deferral import decisions_of, rows_to_defer
from laplora.artifact.manifest import PredictiveRecord
from laplora.fitting.calibrate import predictive_of
from laplora.fitting.outputs import SplitOutputs
from laplora.linearised import class_probs
from laplora.metrics.scores import row_nll
from laplora.predictive.distilled import Estimate
from laplora.predictive.distilled_error import log_traces
from laplora.predictive.kinds import PredictiveName


@dataclass(frozen=True)
class Fidelity:
    """The fast predictive against the exact one.

    Attributes:
        rank_correlation: Spearman's, of the traces of the covariances of the possible classes' logits.
        log_correlation: of their logarithms.
        standardised_error: root mean square of the logarithms' errors, each in units of what its row is said to err.
        nll: mean over rows, nats, of fast alone; laplace_nll: of the exact predictive.
        handed_over: share of rows that mode fast leaves to the exact predictive.
        unfamiliar: share of rows that it leaves there because they are unlike the training rows.
        served_nll: of mode fast as served, those rows answered exactly.
        same_decision: share of rows that are accepted or reviewed as the exact predictive would have it.
    """

    rank_correlation: float
    log_correlation: float
    standardised_error: float
    nll: float
    laplace_nll: float
    handed_over: float
    unfamiliar: float
    served_nll: float
    same_decision: float

    def sentence(self) -> str:
        """Return it in words."""
        return (
            f"Mode fast: its variances rank as the exact ones do with a correlation of {self.rank_correlation:.2f} "
            f"({self.log_correlation:.2f} of the logarithms) and err by {self.standardised_error:.2f} of what is said "
            f"of each row; NLL {self.nll:.3f}, as served {self.served_nll:.3f}, exact {self.laplace_nll:.3f}; "
            f"{self.handed_over:.0%} of the rows are left to the exact predictive ({self.unfamiliar:.0%} as "
            f"unfamiliar), and {self.same_decision:.0%} of all decisions are the same"
        )


def measure_fidelity(
    predictives: Mapping[PredictiveName, PredictiveRecord],
    estimate: Estimate,
    unfamiliar: torch.Tensor,
    outputs: SplitOutputs,
    truncated: Sequence[bool],
) -> Fidelity:
    """Return how close fast comes on a split whose estimated covariances are among the outputs.

    Args:
        unfamiliar: (rows,) bool.
    """
    split = outputs.split
    traces = [log_traces(c, split.class_mask) for c in (estimate.covariance, outputs.fitted.covariance())]
    errors = (traces[0] - traces[1]) / estimate.log_error.clamp_min(torch.finfo(torch.float64).tiny)
    map_probs = class_probs(split.logits, split.class_mask)
    rules, decisions, losses = {}, {}, {}
    names: tuple[PredictiveName, ...] = ("laplace", "fast")
    for name in names:
        predictive, rule = predictive_of(outputs, name, 1.0), predictives[name].thresholds
        assert rule is not None
        rules[name] = rule
        decisions[name] = decisions_of(rule, predictive, map_probs, split.label_mass, truncated)
        losses[name] = row_nll(predictive.probs, split.labels)
    places = rows_to_defer(
        rules["fast"],
        log_error=estimate.log_error,
        unfamiliar=unfamiliar,
        logits=split.logits,
        contrast_mean=split.projected.contrast_mean,
        covariance=estimate.covariance,
        class_mask=split.class_mask,
        label_mass=split.label_mass,
        truncated=truncated,
    )
    served = losses["fast"].clone()
    served[places] = losses["laplace"][places]
    deferred = set(places)
    same = [a == b or i in deferred for i, (a, b) in enumerate(zip(*decisions.values(), strict=True))]
    return Fidelity(
        rank_correlation=_correlation([t.argsort().argsort().double() for t in traces]),
        log_correlation=_correlation(traces),
        standardised_error=float(errors.square().mean().sqrt()),
        nll=float(losses["fast"].mean()),
        laplace_nll=float(losses["laplace"].mean()),
        handed_over=len(places) / len(truncated),
        unfamiliar=float(unfamiliar.double().mean()),
        served_nll=float(served.mean()),
        same_decision=sum(same) / len(same),
    )


def _correlation(columns: Sequence[torch.Tensor]) -> float:
    return float(torch.corrcoef(torch.stack(list(columns)))[0, 1])
