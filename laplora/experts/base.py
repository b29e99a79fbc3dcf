"""The interface of an expert: its inputs and its answers.

An expert answers inputs from the outputs of a pass. It keeps *honest* log probabilities of the labelled rows: those of
a row are made without the labels of its group. Thresholds, label sets and the choice among experts rest on these alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from laplora.errors import DataError
from laplora.features.outputs import Blocks as Blocks
from laplora.features.outputs import FeatureSource as FeatureSource
from laplora.features.outputs import LogProbSource as LogProbSource
from laplora.features.outputs import Outputs as Outputs
from laplora.linearised import Likelihood, PosteriorPredictive, cross_entropy, targets_of

#: The columns of ``Labelled``.
_COLUMNS = ("labels", "class_mask", "groups", "folds", "honest")


@dataclass(frozen=True)
class Labelled:
    """The labels of rows, and what every expert shares about them.

    Attributes:
        labels: (rows,) int64, or if one is soft (rows, classes) float64 (``laplora.linearised.cross_entropy``); under
            ``bernoulli`` (rows, labels) int64, 1 at those that are right.
        class_mask: (rows, classes) bool.
        groups: (rows,) int64, rows of one number belong together and no fold parts them.
        folds: (rows,) int64, in which fold a row is left out: the same of every expert.
        honest: (rows,) bool, rows that no adapter was trained on. Answers that use an adapter are only honest there.
        without: by fold, the labels as known without its rows, (rows, classes), where labels tell of other rows'.

    Raises:
        DataError: columns of different length, or a group that folds part.
    """

    labels: torch.Tensor
    class_mask: torch.Tensor
    groups: torch.Tensor
    folds: torch.Tensor
    honest: torch.Tensor
    likelihood: Likelihood = "categorical"
    without: Mapping[int, torch.Tensor] | None = None

    @property
    def most_options(self) -> int:
        """Most classes that a row can have: of multiple choice, most choices."""
        return int(self.class_mask.sum(1).max())

    def __post_init__(self) -> None:
        for name in _COLUMNS[1:]:
            if len(getattr(self, name)) != len(self):
                raise DataError(f"{name} has {len(getattr(self, name))} rows, expected the {len(self)} of the labels")
        groups = self.groups.tolist()
        if len({*zip(groups, self.folds.tolist(), strict=True)}) != len({*groups}):
            raise DataError("rows of one group are in different folds: take folds from fold_numbers with these groups")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def questions(self) -> tuple[torch.Tensor, int]:
        """The labels of the rows that are measured, and how many of these a row is: under ``bernoulli`` its labels."""
        if self.likelihood == "categorical":
            return self.labels, 1
        return self.labels.flatten(), self.labels.shape[1]

    def take(self, rows: torch.Tensor) -> Labelled:
        """Return some rows, by numbers (some,) int64 or by a mask (rows,) bool."""
        columns: Any = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return replace(self, **columns)

    def joined(self, other: Labelled) -> Labelled:
        """Return these rows and then the others."""
        columns: Any = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in _COLUMNS[1:]}
        labels = [self.labels, other.labels]
        if any(each.is_floating_point() for each in labels):
            labels = [targets_of(each, self.class_mask.shape[1]) for each in labels]
        return replace(self, labels=torch.cat(labels), **columns)


class Expert(Protocol):
    """One way to answer, fitted.

    Attributes:
        name: what a call asks for it by, and answers name as their predictive.
        held_out: (labelled rows, classes) float64, honest log probabilities, nats; NaN in rows where it has none. Under
            ``bernoulli`` each label's logit.
    """

    @property
    def name(self) -> str:
        """The name of the predictive in answers."""

    @property
    def held_out(self) -> torch.Tensor:
        """Honest log probabilities of the labelled rows."""

    def without(self, fold: int) -> torch.Tensor:
        """Return ``held_out`` of the expert as it would be without a fold's rows, which are of no use here."""

    def log_probs(self, outputs: Outputs) -> torch.Tensor:
        """Return (rows, classes) float64 the log probabilities of inputs, nats; under ``bernoulli`` the logits."""

    def predictive(self, outputs: Outputs) -> PosteriorPredictive:
        """Return the probabilities of inputs, those of ``log_probs``, with their spread over the expert's weights.

        Without a posterior over weights the spread is 0, and nothing is epistemic.
        """


def losses_of(held_out: torch.Tensor, labelled: Labelled) -> torch.Tensor:
    """Return (rows,) float64 each labelled row's loss by honest log probabilities, nats; NaN where there are none."""
    if labelled.likelihood == "categorical":
        return cross_entropy(held_out, labelled.labels)
    signed = torch.where(labelled.labels == 1, held_out, -held_out)
    return -torch.nn.functional.logsigmoid(signed).sum(1)
