"""Answered predictions, kept for a while so that their true labels can be told later. Knows no HTTP and no prompt.

The store is this server's part, in memory; ``service.deployment.feedback`` keeps it in the database.

A prediction is known by an unguessable id and to its caller only. Both the number kept and their age, by a monotonic
clock, are bounded.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from service.errors import InvalidRequestError
from service.feedback.records import Outcome, Reference, SeriesKey, SeriesReport, StoredPrediction
from service.feedback.references import reference_of
from service.feedback.series import Series

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from service.scoring.model import Model

#: Begins the id of a shadow's answer, before that of the served one; its caller, which is nobody's name.
BESIDE: Final = "~"
#: Random characters of an id: 132 bits cannot be guessed, and two ids never meet.
_ID_CHARS = 22
#: Windows are searched for rows that are too old this many times within ``feedback_keep_s``.
_SWEEPS = 100


class FeedbackStore:
    """Keeps predictions by their ids, the oldest leaving first. May be used from several threads.

    Args:
        keep_s: seconds that a prediction is kept.
        rows: most predictions kept by id; 0 keeps none, and gives no ids.
        window: labelled predictions, and recent answers, of a series that figures are computed from. A labelled one
            counts in its window even where newer predictions have pushed out its id.
        clock: monotonic seconds.

    Attributes:
        unsaved: predictions with their ids that ``service.deployment.feedback`` has not put into the database yet.
    """

    def __init__(self, *, keep_s: float, rows: int, window: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.keep_s, self.rows, self.window = keep_s, rows, window
        self.clock = clock
        self._predictions: OrderedDict[str, StoredPrediction] = OrderedDict()
        #: A shadow's answers, as many beside: they push out no prediction that a client may label.
        self._beside: OrderedDict[str, StoredPrediction] = OrderedDict()
        #: Labels of these that came by those of the served answers, and are not in the database yet.
        self._told: dict[str, int] = {}
        self.unsaved: deque[tuple[str, StoredPrediction]] = deque()
        self._series: dict[SeriesKey, Series] = {}
        self._references: dict[SeriesKey, Reference] = {}
        self._lock = threading.Lock()
        self._next_sweep = clock() + keep_s / _SWEEPS

    @property
    def on(self) -> bool:
        """Whether predictions are kept at all."""
        return self.rows > 0

    def __len__(self) -> int:
        """Return how many predictions are kept by id."""
        with self._lock:
            self._expire()
            return len(self._predictions)

    def remember(
        self,
        model: Model,
        predictive: str,
        caller: str,
        predictions: Sequence[Prediction],
    ) -> list[str]:
        """Keep one request's predictions and return an id for each, in order.

        Args:
            predictive: the requested one.
            caller: the only one who can give feedback on them.
        """
        # Drawn at once: each draw is a call of the system, in which other threads take their turn.
        drawn = secrets.token_urlsafe(_ID_CHARS * len(predictions))
        ids = [drawn[i : i + _ID_CHARS] for i in range(0, _ID_CHARS * len(predictions), _ID_CHARS)]
        # Every row holds it: one string for all of a caller's rows.
        caller = sys.intern(caller)
        with self._lock:
            self._keep(ids, [None] * len(ids), (model.artifact.digest, predictive), caller, predictions)
        return ids

    def remember_beside(self, ids: Sequence[str], model: Model, predictive: str, answers: Sequence[Prediction]) -> None:
        """Keep a shadow's answers beside those of the active artifact; a label of one is then a label of both.

        Args:
            ids: of the active artifact's answers to the same rows; of those that are not kept any more, nothing is.
        """
        with self._lock:
            there = [(one, p) for one, p in zip(ids, answers, strict=True) if one in self._predictions]
            served = [self._predictions[one] for one, _ in there]
            key = model.artifact.digest, predictive
            self._keep([BESIDE + one for one, _ in there], served, key, BESIDE, [p for _, p in there])
            for (one, _), answered in zip(there, served, strict=True):
                self._record_beside(one, answered)

    def beside(
        self, shadow: SeriesKey, served: SeriesKey, since: float
    ) -> tuple[list[tuple[StoredPrediction, int]], bool]:
        """Return a shadow's labelled answers beside those of a series, with their bits, and whether they are all.

        Args:
            since: Unix seconds; earlier answers do not count.
        """
        with self._lock:
            self._expire(sweep=True)
            series = self._series.get(shadow)
            labelled = [] if series is None else series.snapshot().labelled
        oldest = self.clock() - (time.time() - since)
        beside = ((one, right) for one, right in labelled if one.answered >= oldest)
        pairs = [(one, right) for one, right in beside if one.served is not None and one.served.series == served]
        return pairs, len(labelled) < self.window and time.time() - since < self.keep_s

    def told_beside(self) -> dict[str, int]:
        """Return the labels of a shadow's answers that came since the last call, by id, as bits."""
        with self._lock:
            told, self._told = self._told, {}
        return told

    def _keep(
        self,
        ids: Sequence[str],
        served: Sequence[StoredPrediction | None],
        key: SeriesKey,
        caller: str,
        predictions: Sequence[Prediction],
    ) -> None:
        now, series = self.clock(), self._series_of(key)
        for prediction_id, p, beside in zip(ids, predictions, served, strict=True):
            held = set(p.prediction_set)
            kept = StoredPrediction(
                series=key,
                caller=caller,
                answered=now,
                labels=series.shared(p.labels),
                numbers=b"".join(one.tobytes() for one in (p.arrays.map_probs, p.arrays.probs) if one is not None),
                prediction_set=sum(1 << k for k, label in enumerate(p.labels) if label in held),
                score=p.score,
                target_risk=p.stated_risk,
                accepted=p.decision == "accept",
                flags=series.shared(p.flags),
                several=p.labels_present is not None,
                label=p.label_index,
                served=beside,
            )
            into = self._predictions if beside is None else self._beside
            into[prediction_id] = kept
            self.unsaved.append((prediction_id, kept))
        while len(self.unsaved) > 2 * self.rows:
            self.unsaved.popleft()
        series.count(predictions, now)
        self._expire()

    def give(
        self,
        caller: str,
        items: Sequence[tuple[str, str | list[str]]],
        found: Mapping[str, StoredPrediction] = MappingProxyType({}),
    ) -> list[Outcome]:
        """Record true labels and return what became of each; nothing is recorded if one is refused.

        The same label again changes nothing; another one takes the place of the first, and the prediction counts once
        either way, where it first did.

        Args:
            items: ids and labels, lists of them where several may be right; the same id may come more than once.
            found: predictions by id as the database has them. A label there counts more than one here.

        Raises:
            InvalidRequestError: a label that is none of its prediction's, a list where one label is right, or none
                where several may be; the field names which.
        """
        with self._lock:
            self._expire()
            known = dict[str, StoredPrediction | None]()
            for one, _ in items:
                here, there = self._predictions.get(one), found.get(one)
                known[one] = here if there is None or (here is not None and there.right is None) else there
            places = [self._place(caller, i, known[one], label) for i, (one, label) in enumerate(items)]
            outcomes = []
            for (one, _), place in zip(items, places, strict=True):
                outcomes.append(self._record(one, place))
                if place is not None:
                    self._record_beside(one, place[0], found.get(BESIDE + one))
            return outcomes

    def find(self, prediction_id: str) -> StoredPrediction | None:
        """Return the prediction that is kept here by this id."""
        with self._lock:
            self._expire()
            return self._kept(prediction_id)

    def take(self, labelled: Iterable[tuple[str, StoredPrediction, bool]]) -> None:
        """Take in labelled predictions of any server, with their ids and whether that is the first label each had.

        Those that are known already change nothing.
        """
        with self._lock:
            oldest = self.clock() - self.keep_s
            for prediction_id, prediction, first in labelled:
                series = self._series_of(prediction.series)
                before = series.right_of(prediction_id)
                kept = self._kept(prediction_id) or prediction
                kept.right = prediction.right
                if prediction.answered >= oldest and before != prediction.right:
                    series.label(prediction_id, kept, first=first)
                if not prediction_id.startswith(BESIDE):
                    self._record_beside(prediction_id, kept)

    def reports(self, models: Collection[Model]) -> list[SeriesReport]:
        """Return the figures of every series of these models, by artifact and predictive. Takes milliseconds."""
        of = {model.artifact.digest: model for model in models}
        with self._lock:
            self._expire(sweep=True)
            snapshots = [(key, one, one.snapshot()) for key, one in self._series.items() if key[0] in of]
        reports = [
            series.report(snapshot, of[digest].artifact.name, self._reference(of[digest], predictive))
            for (digest, predictive), series, snapshot in snapshots
        ]
        return sorted(reports, key=lambda report: (report.artifact, report.predictive))

    def _reference(self, model: Model, predictive: str) -> Reference:
        key = model.artifact.digest, predictive
        if key not in self._references:
            self._references[key] = reference_of(model, predictive)
        return self._references[key]

    def _series_of(self, key: SeriesKey) -> Series:
        if key not in self._series:
            self._series[key] = Series(*key, self.window)
        return self._series[key]

    def _expire(self, *, sweep: bool = False) -> None:
        """Forget what is too old or too much; ``sweep``: in the windows too, which is dearer."""
        now = self.clock()
        oldest = now - self.keep_s
        for kept in (self._predictions, self._beside):
            while kept:
                first = next(iter(kept.values()))
                if len(kept) <= self.rows and first.answered >= oldest:
                    break
                kept.popitem(last=False)
        if sweep or now >= self._next_sweep:
            self._next_sweep = now + self.keep_s / _SWEEPS
            for key, series in list(self._series.items()):
                series.forget_before(oldest)
                # As old as all it held: an artifact that has long left must not leave its series behind.
                if series.last_answered < oldest and series.rows == 0:
                    del self._series[key]
                    self._references.pop(key, None)

    def _place(
        self, caller: str, number: int, prediction: StoredPrediction | None, label: str | list[str]
    ) -> tuple[StoredPrediction, int] | None:
        """Return a prediction and the bits of its right labels; None where this caller has none of this id."""
        # Another's prediction is as unknown as none: an answer must not tell that the id exists, nor its labels.
        if prediction is None or prediction.caller != caller:
            return None
        several = prediction.several
        if several != isinstance(label, list):
            wanted = "the list of its right labels, which may be empty" if several else "one label, not a list"
            raise InvalidRequestError(f"items.{number}: send {wanted}", field=f"items.{number}.label")
        right = label if isinstance(label, list) else [label]
        if any(one not in prediction.labels for one in right):
            raise InvalidRequestError(
                f"items.{number}: the label is none of the {len(prediction.labels)} that this prediction had: "
                "send one of the names in its probs",
                field=f"items.{number}.label",
            )
        return prediction, sum(1 << prediction.labels.index(one) for one in right)

    def _record_beside(
        self, prediction_id: str, served: StoredPrediction, found: StoredPrediction | None = None
    ) -> None:
        """Let the label of a prediction count for the shadow's answer to the same row too, where there is one."""
        key = BESIDE + prediction_id
        beside = self._beside.get(key, found)
        if beside is not None and served.right is not None:
            names = [label for k, label in enumerate(served.labels) if served.right >> k & 1]
            right = sum(1 << beside.labels.index(name) for name in names if name in beside.labels)
            if self._record(key, (beside, right)) != "repeated":
                self._told[key] = right
                while len(self._told) > self.rows:
                    del self._told[next(iter(self._told))]

    def _kept(self, prediction_id: str) -> StoredPrediction | None:
        return self._predictions.get(prediction_id) or self._beside.get(prediction_id)

    def _record(self, prediction_id: str, place: tuple[StoredPrediction, int] | None) -> Outcome:
        if place is None:
            return "unknown"
        prediction, right = place
        before, prediction.right = prediction.right, right
        if before == right:
            return "repeated"
        kept = self._kept(prediction_id) or prediction
        kept.right = right
        self._series_of(prediction.series).label(prediction_id, kept, first=before is None)
        return "recorded" if before is None else "corrected"
