"""Heads and their pool as an artifact has them: what they read, what they answer, how familiar inputs are to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from laplora.experts.adapter import AsGiven
from laplora.experts.answering import AnswersByHead
from laplora.experts.base import Expert, FeatureSource, LogProbSource, Outputs
from laplora.experts.familiar import across, compared, reads_states
from laplora.familiarity.percentile import Familiarity
from laplora.head.posterior import Predictive
from laplora.linearised import Likelihood
from laplora.pool.pool import Pool
from laplora.pool.weights import pooled

#: Whose answers a pool may weigh beside its heads: the adapter's, and another model's that came with the input.
_MODELS: tuple[LogProbSource, ...] = ("adapter", "zero_shot")
#: The name of a pool's predictive.
POOLED = "pooled"


@dataclass(frozen=True)
class HeadAnswers:
    """The answers of heads to a batch.

    Attributes:
        log_probs: by name (batch, classes) float64 of each head that read it and of the pool, nats; under ``bernoulli``
            logits.
        served: of the one that was asked for, with its spread; None where another kind of predictive was, or a pool
            without heads.
    """

    log_probs: Mapping[str, torch.Tensor]
    served: Predictive | None


@dataclass(frozen=True)
class ServedExperts:
    """Heads with the weights of their pool.

    Attributes:
        heads: by name.
        weights: of the pool, by name, ``adapter`` or ``zero_shot`` among them; none: there is no pool.
        familiar: by head, by fold, how familiar inputs are to its labelled rows; empty: nothing says it.
    """

    heads: Mapping[str, AnswersByHead]
    weights: Mapping[str, float]
    familiar: Mapping[str, tuple[Familiarity, ...]] = field(default_factory=dict, repr=False)
    likelihood: Likelihood = "categorical"

    @cached_property
    def pool(self) -> Pool | None:
        """The pool; None without one."""
        if not self.weights:
            return None
        none = torch.empty(0, 0)
        models = {source: AsGiven(source, none, self.likelihood) for source in _MODELS}
        members: dict[str, Expert] = {**self.heads, **models}  # type: ignore[dict-item]
        return Pool(members, self.weights, {}, none, self.likelihood)

    def members(self, name: str) -> tuple[str, ...]:
        """Return the heads that a predictive asks: none of one that is not theirs."""
        return tuple(one for one in (self.weights if name == POOLED else (name,)) if one in self.heads)

    def heaviest(self, name: str) -> str | None:
        """Return the head of a predictive that says how familiar inputs are; None without one that reads states."""
        members = [one for one in self.members(name) if reads_states(self.heads[one].source)]
        return max(members, key=lambda one: self.weights.get(one, 0.0), default=None)

    def sources(self, names: Iterable[str]) -> set[FeatureSource]:
        """Return what the heads of predictives read."""
        return {self.heads[one].source for name in names for one in self.members(name)}

    def answered(self, name: str, outputs: Outputs) -> HeadAnswers:
        """Return what a batch's outputs are enough for, with the spread of one predictive."""
        heads = {one: head for one, head in self.heads.items() if head.source in outputs.features}
        names = (self.pool.heads if self.pool else ()) if name == POOLED else (name,)
        spreads = {one: heads[one].answers(outputs) for one in names if one in heads}
        # Under bernoulli, a head's answers have log probabilities, and a pool takes logits.
        known = spreads if self.likelihood == "categorical" else {}
        log_probs = {one: known[one].log_probs if one in known else of.log_probs(outputs) for one, of in heads.items()}
        together = log_probs | {str(one): outputs.log_probs[one] for one in _MODELS if one in outputs.log_probs}
        if self.weights and self.weights.keys() <= together.keys():
            log_probs[POOLED] = pooled(together, self.weights, self.likelihood)
        served = spreads.get(name)
        if name == POOLED and self.pool is not None and spreads:
            served = self.pool.spread(log_probs[POOLED], spreads)
        return HeadAnswers(log_probs, served)

    def familiarity(self, name: str, outputs: Outputs) -> torch.Tensor | None:
        """Return (batch,) float64 how familiar inputs are, to a predictive's heaviest head; None where nothing says."""
        if not self.familiar or (heaviest := self.heaviest(name)) is None:
            return None
        states = compared(outputs.features[self.heads[heaviest].source], outputs.class_mask)
        return across(self.familiar[heaviest], states)


#: The experts of an artifact without heads.
NO_EXPERTS = ServedExperts({}, {})
