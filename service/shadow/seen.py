"""Counts of what the active artifact and its shadow answered to the same rows, without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction

#: Rows whose decisions are kept in order: enough to tell differences of 1 % in the accepted share.
MOST_DECISIONS = 100_000
#: Pairs of labels that are counted one by one.
_MOST_PAIRS = 10_000


@dataclass
class Seen:
    """Counts of this server since it began. ``Candidate`` changes it on the event loop.

    Attributes:
        rows, same: answered by both, and with the same label.
        accepted: of rows by (active accepted, shadow accepted).
        decisions: of the first rows that differ, 1 and whether the shadow accepted, less whether the active did.
        different: hashes of their probabilities: the same text again says nothing new.
        labels: rows by (active's label, shadow's label) where they differ.
        missed: rows that the shadow did not answer, by why.
    """

    rows: int = 0
    same: int = 0
    accepted: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    decisions: bytearray = field(default_factory=bytearray)
    different: set[int] = field(default_factory=set)
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)

    def count(self, served: Prediction, shadow: Prediction) -> tuple[bool, bool, bool]:
        """Take one row in; return whether the labels are the same, the active accepted, and the shadow."""
        one, other = _label(served), _label(shadow)
        by, beside = served.decision == "accept", shadow.decision == "accept"
        self.rows += 1
        self.same += one == other
        self.accepted[by, beside] += 1
        key = hash(tuple(alike(served.arrays.probs.tolist()) + alike(shadow.arrays.probs.tolist())))
        if len(self.decisions) < MOST_DECISIONS and key not in self.different:
            self.different.add(key)
            self.decisions.append(1 + beside - by)
        if one != other and ((one, other) in self.labels or len(self.labels) < _MOST_PAIRS):
            self.labels[one, other] += 1
        return one == other, by, beside

    def copy(self) -> Seen:
        """Return what another thread may read."""
        return replace(
            self,
            accepted=self.accepted.copy(),
            decisions=self.decisions[:],
            different=set(),
            labels=self.labels.copy(),
            missed=self.missed.copy(),
        )


def alike(probs: Sequence[float]) -> list[float]:
    """Return probabilities as they are for the same input in another batch."""
    return [round(one, 5) for one in probs]


def _label(answer: Prediction) -> str:
    return answer.label if answer.labels_present is None else ", ".join(answer.labels_present)
