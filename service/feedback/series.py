"""The windows of one artifact and one predictive: its labelled predictions, and its recent answers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.feedback.figures import by_flag, drifts, measure, share
from service.feedback.records import Answered, Kept, Reference, Report
from service.feedback.several_labels import measure_several
from service.http.schemas.evaluate import LabelMetrics
from service.http.schemas.feedback import FiguresOut, FlagOut, SeriesOut

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction


@dataclass(frozen=True)
class Snapshot:
    """What a report is computed from, taken under the lock and read without it.

    Attributes:
        version: grows with every change of what is labelled.
        labelled: rows with the places of their labels.
        first: the first answers given, complete wherever ``later``, recent ones after these, holds any.
    """

    version: int
    labelled: Sequence[tuple[Kept, int]]
    predictions: int
    recent: Sequence[Answered]
    first: Sequence[Answered]
    later: Sequence[Answered]


@dataclass(frozen=True)
class Measured:
    """The figures of a snapshot's labelled rows; ``labels`` are each label's, None where one label is right."""

    version: int
    figures: FiguresOut | None = None
    labels: dict[str, LabelMetrics] | None = None
    flags: dict[str, FlagOut] = field(default_factory=dict)


def _measured(now: Snapshot, reference: Reference) -> Measured:
    if not now.labelled:
        return Measured(now.version)
    flags = by_flag(now.labelled)
    if now.labelled[0][0].several:
        figures, labels = measure_several(now.labelled, reference)
        return Measured(now.version, figures, labels, flags)
    return Measured(now.version, measure(now.labelled, reference), None, flags)


class Series:
    """One artifact and predictive. ``FeedbackStore`` holds its lock around each call but ``report``.

    Args:
        window: labelled predictions, and recent answers, that figures are computed from.
    """

    def __init__(self, artifact: str, digest: str, predictive: str, reference: Reference, window: int) -> None:
        self.artifact, self.digest, self.predictive = artifact, digest, predictive
        self.reference = reference
        self.predictions = 0
        self.last_answered = -math.inf
        self._window = window
        self._labelled: deque[Kept] = deque(maxlen=window)
        self._version = 0
        self._first: list[Answered] = []
        self._recent: deque[Answered] = deque(maxlen=window)
        self._measured = Measured(0)
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    @property
    def rows(self) -> int:
        """Labelled predictions in the window."""
        return len(self._labelled)

    def count(self, predictions: Sequence[Prediction], now: float) -> None:
        """Take answers in, for drift; ``now``: clock seconds."""
        self.last_answered = now
        for p in predictions:
            one = Answered(p.epistemic, p.confidence, p.score, p.decision == "accept")
            self.predictions += 1
            self._recent.append(one)
            if len(self._first) < self._window:
                self._first.append(one)

    def shared(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the same tuple for equal ones: rows hold labels and flags, of which there are few kinds."""
        return self._shared.setdefault(tuple(names), tuple(names))

    def label(self, kept: Kept, *, first: bool) -> None:
        """Take in a prediction whose label was told, or told anew."""
        if first:
            self._labelled.append(kept)
        self._version += 1

    def forget_before(self, oldest: float) -> None:
        """Drop labelled predictions that were answered before ``oldest``, clock seconds."""
        if any(kept.answered < oldest for kept in self._labelled):
            self._labelled = deque((k for k in self._labelled if k.answered >= oldest), maxlen=self._window)
            self._version += 1

    def snapshot(self) -> Snapshot:
        """Return a copy of what a report needs."""
        recent = list(self._recent)
        after = max(0, self.predictions - self._window)
        return Snapshot(
            version=self._version,
            labelled=[(kept, kept.label) for kept in self._labelled],
            predictions=self.predictions,
            recent=recent,
            first=self._first,
            later=recent[-after:] if after else [],
        )

    def report(self, now: Snapshot) -> Report:
        """Return the figures of a snapshot; those of labelled rows are computed once for each change of them."""
        if self._measured.version != now.version:
            self._measured = _measured(now, self.reference)
        found = self._measured
        shown = SeriesOut(
            artifact=self.artifact,
            digest=self.digest,
            predictive=self.predictive,
            predictions=now.predictions,
            recent=len(now.recent),
            labelled=len(now.labelled),
            accepted_share=share([one.accepted for one in now.recent]),
            labelled_accepted_share=share([kept.accepted for kept, _ in now.labelled]),
            figures=found.figures,
            labels=found.labels,
            flags=found.flags,
            drift=drifts(self.reference, recent=now.recent, first=now.first, later=now.later),
        )
        return Report(shown, self.reference)
