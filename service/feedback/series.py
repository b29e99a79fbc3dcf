"""The windows of one artifact and one predictive: its labelled predictions, and its recent answers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.feedback.records import AnswerSignals, Measured, Reference, SeriesReport, StoredPrediction, share

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction


@dataclass(frozen=True)
class Snapshot:
    """The data of a report, copied under the lock and read without it.

    Attributes:
        version: grows with every change of what is labelled.
        labelled: predictions with the bits of their right labels.
        first: the first answers given, complete wherever ``later``, recent ones after these, holds any.
    """

    version: int
    labelled: Sequence[tuple[StoredPrediction, int]]
    predictions: int
    recent: Sequence[AnswerSignals]
    first: Sequence[AnswerSignals]
    later: Sequence[AnswerSignals]


class Series:
    """One artifact and predictive. ``FeedbackStore`` holds its lock around each call but ``report``.

    Args:
        window: labelled predictions, and recent answers, that figures are computed from.
    """

    def __init__(self, digest: str, predictive: str, window: int) -> None:
        self.digest, self.predictive = digest, predictive
        self.predictions = 0
        self.last_answered = -math.inf
        self._window = window
        self._labelled: dict[str, StoredPrediction] = {}
        self._version = 0
        self._first: list[AnswerSignals] = []
        self._recent: deque[AnswerSignals] = deque(maxlen=window)
        self._measured = 0, Measured()
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    @property
    def rows(self) -> int:
        """Labelled predictions in the window."""
        return len(self._labelled)

    def count(self, predictions: Sequence[Prediction], now: float) -> None:
        """Take answers in, for drift; ``now``: clock seconds."""
        self.last_answered = now
        for p in predictions:
            one = AnswerSignals(p.epistemic, p.confidence, p.score, p.decision == "accept")
            self.predictions += 1
            self._recent.append(one)
            if len(self._first) < self._window:
                self._first.append(one)

    def shared(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the same tuple for equal ones: rows hold labels and flags, of which there are few kinds."""
        return self._shared.setdefault(tuple(names), tuple(names))

    def label(self, prediction_id: str, prediction: StoredPrediction, *, first: bool) -> None:
        """Take in a prediction whose label was told, or told anew: it counts where it first did, while that is here."""
        known = self._labelled.get(prediction_id)
        if known is not None:
            known.right = prediction.right
        elif not first:
            return
        else:
            self._labelled[prediction_id] = prediction
            if len(self._labelled) > self._window:
                del self._labelled[next(iter(self._labelled))]
        self.last_answered = max(self.last_answered, prediction.answered)
        self._version += 1

    def right_of(self, prediction_id: str) -> int | None:
        """Return the bits of a prediction's right labels, None where the window has none of it."""
        known = self._labelled.get(prediction_id)
        return None if known is None else known.right

    def forget_before(self, oldest: float) -> None:
        """Drop labelled predictions that were answered before ``oldest``, clock seconds."""
        if any(one.answered < oldest for one in self._labelled.values()):
            self._labelled = {key: one for key, one in self._labelled.items() if one.answered >= oldest}
            self._version += 1

    def snapshot(self) -> Snapshot:
        """Return a copy of what a report needs."""
        recent = list(self._recent)
        after = max(0, self.predictions - self._window)
        return Snapshot(
            version=self._version,
            labelled=[(one, one.right) for one in self._labelled.values() if one.right is not None],
            predictions=self.predictions,
            recent=recent,
            first=self._first,
            later=recent[-after:] if after else [],
        )

    def report(self, now: Snapshot, artifact: str, reference: Reference) -> SeriesReport:
        """Return the figures of a snapshot; those of labelled rows are computed once for each change of them.

        Args:
            artifact: its name; reference: its record of the predictive.
        """
        from service.feedback.figures import drifts, measure  # torch and scipy: not before somebody asks

        version, measured = self._measured
        if version != now.version:
            measured = measure(now.labelled, reference)
            self._measured = now.version, measured
        return SeriesReport(
            artifact=artifact,
            digest=self.digest,
            predictive=self.predictive,
            predictions=now.predictions,
            recent=len(now.recent),
            labelled=len(now.labelled),
            accepted_share=share([one.accepted for one in now.recent]),
            labelled_accepted_share=share([one.accepted for one, _ in now.labelled]),
            figures=measured.figures,
            labels=measured.labels,
            flags=measured.flags,
            drift=drifts(reference, recent=now.recent, first=now.first, later=now.later),
            baseline=reference,
        )
