"""Counts of what the active artifact and its shadow answered to the same rows, without labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
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
        decisions: of the first rows, shadow accepted less active accepted: -1, 0 or 1.
        labels: rows by (active's label, shadow's label) where they differ.
        missed: rows that the shadow did not answer, by why.
    """

    rows: int = 0
    same: int = 0
    accepted: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    decisions: bytearray = field(default_factory=bytearray)
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)

    def count(self, served: Prediction, shadow: Prediction) -> tuple[bool, bool, bool]:
        """Take one row in; return whether the labels are the same, the active accepted, and the shadow."""
        one, other = _label(served), _label(shadow)
        by, beside = served.decision == "accept", shadow.decision == "accept"
        self.rows += 1
        self.same += one == other
        self.accepted[by, beside] += 1
        if len(self.decisions) < MOST_DECISIONS:
            self.decisions.append(1 + beside - by)
        if one != other and ((one, other) in self.labels or len(self.labels) < _MOST_PAIRS):
            self.labels[one, other] += 1
        return one == other, by, beside

    def copy(self) -> Seen:
        """Return what another thread may read."""
        return Seen(
            self.rows, self.same, self.accepted.copy(), self.decisions[:], self.labels.copy(), self.missed.copy()
        )


def _label(answer: Prediction) -> str:
    return answer.label if answer.labels_present is None else ", ".join(answer.labels_present)
