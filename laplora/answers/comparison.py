"""Whether labels that came later help: the artifact on their rows, before and after."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field

from laplora.errors import ConditioningError
from laplora.experts.adapter import of_rows
from laplora.experts.base import Labelled, losses_of
from laplora.metrics.groups import mean_and_error
from laplora.metrics.scores import evaluate_probs
from laplora.predictive.kinds import PredictiveName

#: Standard errors by which answers that learned may be worse than those of the artifact as packaged,
WORSE = 1.0
#: and nats over all rows, what a needless fit of one number costs: where labels move next to nothing, so does chance.
COST = 0.5


class Figures(BaseModel):
    """One predictive on the new rows."""

    model_config = ConfigDict(frozen=True)

    predictive: PredictiveName
    accuracy: float = Field(ge=0, le=1)
    nll: float = Field(description="nats, mean over rows")
    ece: float = Field(ge=0, le=1)
    brier: float = Field(ge=0, le=2)


class Comparison(BaseModel):
    """The artifact on the new rows, before and after: each row answered without its fold, as packaged and with the new
    labels of the other folds learned. Predictives that no label moves answer as they are. After a change of labels the
    rows are those whose label stayed.
    """

    model_config = ConfigDict(frozen=True)

    rows: int = Field(ge=1, description="those compared")
    folds: int = Field(ge=2)
    before: Figures = Field(description="of the predictive that the packaged artifact recommends")
    after: Figures = Field(
        description="of the same, or where no label moves it of the pool, or of conditioned: none is chosen by these "
        "rows; each row by the labels of the other folds"
    )
    difference: float = Field(description="of the NLL, after less before, nats, mean over rows")
    standard_error: float = Field(ge=0, description="of the difference, nats")

    @property
    def worse(self) -> bool:
        """Whether the labels make the answers worse beyond what chance does."""
        return self.difference > max(WORSE * self.standard_error, COST / self.rows)

    def __str__(self) -> str:
        after, before = self.after, self.before
        return (
            f"NLL {after.nll:.3f} by {after.predictive}, {before.nll:.3f} by {before.predictive} before: "
            f"{self.difference:+.3f} (standard error {self.standard_error:.3f}); accuracy {after.accuracy:.3f}, "
            f"{before.accuracy:.3f} before; {self.rows} rows, each by the labels of the other folds"
        )


def compare(
    before: tuple[PredictiveName, torch.Tensor], after: tuple[PredictiveName, torch.Tensor], new: Labelled, folds: int
) -> Comparison:
    """Return the new rows before and after.

    Args:
        before, after: name and (rows, classes) log probabilities of the rows, under ``bernoulli`` logits.
    """
    labels, several = new.questions

    def figures(name: PredictiveName, log_probs: torch.Tensor) -> Figures:
        probs = of_rows(log_probs, new.likelihood).probs
        found = evaluate_probs(probs, labels, resamples=0)
        return Figures(predictive=name, accuracy=found.accuracy, nll=found.nll, ece=found.ece, brier=found.brier)

    each = (losses_of(after[1], new) - losses_of(before[1], new)) / several
    difference, error = mean_and_error(each, new.groups)
    return Comparison(
        rows=len(new),
        folds=folds,
        before=figures(*before),
        after=figures(*after),
        difference=difference,
        standard_error=error,
    )


def check_better(comparison: Comparison, *, force: bool, allowed: float = float("-inf")) -> None:
    """Raise ConditioningError where labels make answers worse, by more nats than allowed, unless they are forced."""
    if comparison.worse and comparison.difference > allowed and not force:
        raise ConditioningError(
            f"the labels make the answers worse, by more than one standard error: {comparison}. Nothing has changed; "
            "check the labels, collect more, or force it"
        )
