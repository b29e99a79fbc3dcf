"""Fitted experts together: an expert itself, whose weights are fitted on honest answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from laplora.errors import DataError
from laplora.experts.adapter import point
from laplora.experts.answering import AnswersByHead, at_mode
from laplora.experts.base import Expert, Labelled, Outputs
from laplora.head.posterior import Predictive
from laplora.linearised import Likelihood, PosteriorPredictive, entropy
from laplora.pool.weights import fit_weights, pooled


@dataclass(frozen=True)
class Pool:
    """Experts with their weights; an ``Expert``.

    Attributes:
        experts: by name; one without a weight is never asked.
        weights: by name, above 0, fitted on the rows in which every expert is honest.
        by_fold: by fold number, the weights that know nothing of its rows.
        held_out: as of ``Expert``: a row by its fold's weights, of experts that know nothing of its fold.
    """

    experts: Mapping[str, Expert] = field(repr=False)
    weights: Mapping[str, float]
    by_fold: Mapping[int, Mapping[str, float]] = field(repr=False)
    held_out: torch.Tensor = field(repr=False)
    likelihood: Likelihood = "categorical"

    @property
    def name(self) -> str:
        return "pooled"

    @property
    def heads(self) -> dict[str, AnswersByHead]:
        """The heads that have a weight, the heaviest first."""
        order = sorted(self.weights, key=lambda name: -self.weights[name])
        return {name: of for name in order if isinstance(of := self.experts[name], AnswersByHead)}

    def without(self, fold: int) -> torch.Tensor:
        """Return ``held_out`` of a pool that has never seen a fold; NaN in its rows."""
        weights = self.by_fold[fold]
        return pooled({name: self.experts[name].without(fold) for name in weights}, weights, self.likelihood)

    def log_probs(self, outputs: Outputs) -> torch.Tensor:
        given = {name: self.experts[name].log_probs(outputs) for name in self.weights}
        return pooled(given, self.weights, self.likelihood)

    def predictive(self, outputs: Outputs) -> PosteriorPredictive:
        """Return the probabilities with the spread that the heads' posteriors give them."""
        return at_mode(self.answers(outputs)) if self.heads else point(self.log_probs(outputs), self.likelihood)

    def answers(self, outputs: Outputs) -> Predictive:
        """Return the answers with everything that the heads say of their spread; it has at least one head."""
        return self.spread(self.log_probs(outputs), {name: of.answers(outputs) for name, of in self.heads.items()})

    def with_experts(self, experts: Mapping[str, Expert], labelled: Labelled) -> Pool:
        """Return the pool of experts that learned or forgot labels since, under the weights as fitted."""
        held_out = _by_fold(experts, self.by_fold, labelled)
        return replace(self, experts=dict(experts), held_out=held_out)

    def spread(self, log_probs: torch.Tensor, of_heads: Mapping[str, Predictive]) -> Predictive:
        """Return the answers of these log probabilities, by what each of ``heads`` says of its spread, in that order.

        Their logits vary by those of the heads, independent of each other, to first order. So are classes, which is
        exact of two of them. The leverage is that of the heaviest head.
        """
        variance = torch.stack([self.weights[name] ** 2 * of.variance for name, of in of_heads.items()]).sum(0)
        one = self.likelihood == "categorical"
        log_probs = log_probs if one else torch.nn.functional.logsigmoid(log_probs)
        probs = log_probs.exp()
        slopes = probs * (1 - probs)
        if one:
            free = uncentred(variance, log_probs > -torch.inf)
            shared = (probs.square() * free).sum(1, keepdim=True)
            std, total = probs * ((1 - 2 * probs) * free + shared).clamp_min(0).sqrt(), entropy(probs)
        else:
            free, std, total = variance, slopes * variance.sqrt(), entropy(probs) + entropy(1 - probs)
        expected = (total - (slopes * free).sum(1) / 2).clamp_min(0)
        leverage = next(iter(of_heads.values())).leverage
        return Predictive(self.likelihood, log_probs, probs, std, expected, variance, leverage)


def uncentred(variance: torch.Tensor, possible: torch.Tensor) -> torch.Tensor:
    """Return (rows, classes) variances of independent logits that have these less their mean over the possible ones."""
    total, count = variance.sum(1, keepdim=True), possible.sum(1, keepdim=True)
    free = (variance - total / (count * (count - 1))) * count / (count - 2)
    return torch.where(count > 2, free.clamp_min(0), total) * possible


def fit_pool(experts: Mapping[str, Expert], labelled: Labelled) -> Pool:
    """Return the pool of experts, on the labelled rows in which each of them is honest.

    For each fold, weights are fitted on the other folds' rows, as answered by experts that have never seen this fold;
    the weights that are served are fitted on all.

    Raises:
        DataError: no such row, or rows of one fold alone.
    """
    honest = torch.stack([~expert.held_out.isnan().any(1) for expert in experts.values()]).all(0)
    numbers = torch.unique(labelled.folds[honest]).tolist()
    if len(numbers) < 2:
        raise DataError("the weights of a pool need honest rows of at least two folds: give more labelled rows")

    def weights(answers: Mapping[str, torch.Tensor], rows: torch.Tensor) -> dict[str, float]:
        return fit_weights(
            {name: values[rows] for name, values in answers.items()}, labelled.labels[rows], labelled.likelihood
        )

    by_fold = {
        number: weights(
            {name: expert.without(number) for name, expert in experts.items()}, honest & (labelled.folds != number)
        )
        for number in numbers
    }
    served = weights({name: expert.held_out for name, expert in experts.items()}, honest)
    held_out = _by_fold(experts, by_fold, labelled)
    return Pool(dict(experts), served, by_fold, held_out, labelled.likelihood)


def _by_fold(
    experts: Mapping[str, Expert], by_fold: Mapping[int, Mapping[str, float]], labelled: Labelled
) -> torch.Tensor:
    held_out = torch.full_like(next(iter(experts.values())).held_out, torch.nan)
    for number, weights in by_fold.items():
        rows = labelled.folds == number
        held_out[rows] = pooled({name: experts[name].held_out[rows] for name in weights}, weights, labelled.likelihood)
    return held_out
