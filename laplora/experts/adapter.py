"""The answer of a model as it is: of the trained adapter or head, or of the base by label tokens. No label moves it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from laplora.experts.base import Labelled, LogProbSource, Outputs
from laplora.linearised import Likelihood, PosteriorPredictive, entropy


@dataclass(frozen=True)
class AsGiven:
    """Log probabilities of a pass as they are, or at a temperature (Guo et al., arXiv 1706.04599); an ``Expert``.

    Attributes:
        source: of the log probabilities, and without a temperature what the expert is called.
        held_out: as of ``Expert``: NaN in rows that the model was trained on; at the temperature of other folds.
        temperature: divides them, of the predictive of this name; None: none does.
    """

    source: LogProbSource
    held_out: torch.Tensor = field(repr=False)
    likelihood: Likelihood = "categorical"
    temperature: float | None = None

    @property
    def name(self) -> str:
        return self.source if self.temperature is None else "temperature"

    def without(self, fold: int) -> torch.Tensor:
        """Return ``held_out``: no label moves it; a temperature knows next to nothing of one."""
        return self.held_out

    def log_probs(self, outputs: Outputs) -> torch.Tensor:
        given = outputs.log_probs[self.source]
        if self.temperature is None:
            return given
        divided = given / self.temperature
        return divided.log_softmax(-1) if self.likelihood == "categorical" else divided

    def predictive(self, outputs: Outputs) -> PosteriorPredictive:
        return point(self.log_probs(outputs), self.likelihood)


def as_given(name: LogProbSource, outputs: Outputs, labelled: Labelled) -> AsGiven:
    """Return the expert of a source: honest in rows that no adapter was trained on; in all where there is none."""
    honest = labelled.honest[:, None] if name != "zero_shot" else torch.ones_like(labelled.honest)[:, None]
    return AsGiven(name, outputs.log_probs[name].masked_fill(~honest, torch.nan), labelled.likelihood)


def point(log_probs: torch.Tensor, likelihood: Likelihood = "categorical") -> PosteriorPredictive:
    """Return probabilities (rows, classes) without spread, of an expert's log probabilities.

    Under ``bernoulli`` the entropy is the sum of the labels'.
    """
    if likelihood == "categorical":
        probs = log_probs.exp()
        return PosteriorPredictive(probs, torch.zeros_like(probs), entropy(probs))
    probs = log_probs.sigmoid()
    return PosteriorPredictive(probs, torch.zeros_like(probs), entropy(probs) + entropy(1 - probs))


def by_label(spread: PosteriorPredictive) -> PosteriorPredictive:
    """Return the moments of labels' presence, (inputs, labels), as those of a binary row for each label.

    An input's expected entropy is shared out evenly: what is said of it is the sum.
    """
    probs, labels = spread.probs.flatten(), spread.probs.shape[1]
    expected = (spread.expected_entropy / labels).repeat_interleave(labels)
    std = spread.std.flatten()[:, None].expand(-1, 2)
    return PosteriorPredictive(torch.stack([1 - probs, probs], 1), std, expected)


def of_rows(held_out: torch.Tensor, likelihood: Likelihood) -> PosteriorPredictive:
    """Return honest answers as those of a split's rows: under ``bernoulli`` two classes of each input and label."""
    predictive = point(held_out, likelihood)
    return predictive if likelihood == "categorical" else by_label(predictive)
