"""Laplace's average: the adapter's answer under the posterior over its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.experts.base import Outputs
from laplora.linearised import Likelihood, PosteriorPredictive, mean_of
from laplora.posterior.binary import binary_means
from laplora.predictive.binary_rows import binary_covariances
from laplora.predictive.gaussian import posterior_predictive

#: Least probability whose logarithm an expert gives: an average over few draws can be 0, and no label could pull it
#: back.
LEAST = 1e-12


@dataclass(frozen=True)
class Laplace:
    """Laplace's average; an ``Expert``.

    Attributes:
        held_out: as of ``Expert``: each calibration row's under a prior that was chosen without it.
    """

    held_out: torch.Tensor
    likelihood: Likelihood = "categorical"

    @property
    def name(self) -> str:
        return "laplace"

    def without(self, fold: int) -> torch.Tensor:
        """Return ``held_out``: of a row's label, that of another fold knows no more than the prior's one number."""
        return self.held_out

    def log_probs(self, outputs: Outputs) -> torch.Tensor:
        predictive, mask = self._answers(outputs)
        return logged(predictive.probs, mask, len(predictive) // len(outputs))

    def predictive(self, outputs: Outputs) -> PosteriorPredictive:
        answers, _ = self._answers(outputs)
        return answers if self.likelihood == "categorical" else by_input(answers, len(outputs))

    def _answers(self, outputs: Outputs) -> tuple[PosteriorPredictive, torch.Tensor]:
        """Return the answers and their class mask; under ``bernoulli`` those of a binary row for each label."""
        mask, covariance = outputs.class_mask, outputs.covariance
        assert covariance is not None
        mean = outputs.log_probs["adapter"].masked_fill(~mask, 0)
        if self.likelihood == "categorical":
            mean = mean_of("categorical", mean)
        else:
            mask, covariance = torch.ones(mean.numel(), 2, dtype=torch.bool), binary_covariances(covariance)
            mean = binary_means(mean)
        return posterior_predictive(mean, covariance, mask), mask


def by_input(predictive: PosteriorPredictive, inputs: int) -> PosteriorPredictive:
    """Return the moments of binary rows as those of inputs, (inputs, labels) of each label's presence."""
    present, spread = (moment[:, 1].view(inputs, -1) for moment in (predictive.probs, predictive.std))
    return PosteriorPredictive(present, spread, predictive.expected_entropy.view(inputs, -1).sum(1))


def logged(probs: torch.Tensor, class_mask: torch.Tensor, several: int = 1) -> torch.Tensor:
    """Return probabilities as an ``Expert`` gives them: logarithms, -inf at impossible classes; or labels' logits.

    Args:
        several: 1, or so many consecutive rows are an input's labels, absent and present.
    """
    if several > 1:
        return probs[:, 1].clamp(LEAST, 1 - LEAST).logit().view(-1, several)
    return probs.clamp_min(LEAST).log().masked_fill(~class_mask, -torch.inf)
