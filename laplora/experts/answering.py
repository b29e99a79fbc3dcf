"""A head that answers: what an artifact holds of an expert, without labelled rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch

from laplora.experts.base import FeatureSource, LogProbSource, Outputs
from laplora.head.head import Head
from laplora.head.posterior import Predictive
from laplora.linearised import PosteriorPredictive, entropy


class AnswersByHead(ABC):
    """Answers of a head on features of a pass, alone or as a correction of other log probabilities.

    Attributes:
        source: of its features; offset: of the log probabilities that it corrects.
    """

    source: FeatureSource
    offset: LogProbSource | None

    @property
    @abstractmethod
    def head(self) -> Head:
        """The head that answers."""

    def log_probs(self, outputs: Outputs) -> torch.Tensor:
        """Return (rows, classes) float64 log probabilities at the head's mode; under ``bernoulli`` logits."""
        answer = self.head.logits if self.head.likelihood == "bernoulli" else self.head.log_probs
        return answer(*self._inputs(outputs))

    def answers(self, outputs: Outputs) -> Predictive:
        """Return the answers with everything that a head says of their spread."""
        return self.head.predictive(*self._inputs(outputs))

    def predictive(self, outputs: Outputs) -> PosteriorPredictive:
        """Return the probabilities at the mode, with their spread over the head's posterior."""
        return at_mode(self.answers(outputs))

    def _inputs(self, outputs: Outputs) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, torch.Tensor]:
        """Return blocks, offset and mask, as a head takes them."""
        offset = None if self.offset is None else outputs.log_probs[self.offset]
        return dict(outputs.features[self.source]), offset, outputs.class_mask


@dataclass(frozen=True)
class ServedHead(AnswersByHead):
    """A head of an artifact.

    Attributes:
        name: of the expert; source, offset: as of ``AnswersByHead``; fitted: the head.
    """

    name: str
    source: FeatureSource
    offset: LogProbSource | None
    fitted: Head = field(repr=False)

    @property
    def head(self) -> Head:
        return self.fitted


def at_mode(answers: Predictive) -> PosteriorPredictive:
    """Return a head's probabilities at its mode, which ``held_out`` is of, with the spread of their average.

    Precisions are chosen for answers at the mode. If features separate the labels, the spread is nearly that of a wide
    prior. It is therefore capped at the most that a mean of these probabilities could have.
    """
    probs = answers.log_probs.exp()
    total = entropy(probs) + (entropy(1 - probs) if answers.likelihood == "bernoulli" else 0)
    std = answers.std.minimum((probs * (1 - probs)).sqrt())
    return PosteriorPredictive(probs, std, (total - answers.epistemic).clamp_min(0))
