"""The rows of a pool that are worth a label next, in the order to label them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from laplora.answers.prediction import Prediction
from laplora.classifier import batches
from laplora.errors import ConfigError, DataError
from laplora.predictive.kinds import PredictiveName
from laplora.predictor import Predictor
from laplora.prompts.rows import EncodedRow
from laplora.selection.information import information

Item = TypeVar("Item")


class Tracker(Protocol):
    """Yields items while it shows how far it is; ``laplora.execution.progress.Progress.track`` is one."""

    def __call__(self, items: Sequence[Item], title: str) -> Iterator[Item]:
        """Yield every item."""


def _silently(items: Sequence[Item], title: str) -> Iterator[Item]:
    yield from items


@dataclass(frozen=True)
class SuggestedRow:
    """A row that is worth a label.

    Attributes:
        row: its place in the pool, from 0.
        gain: what its label is expected to tell about the weights, nats.
        prediction: by the recommended predictive.
    """

    row: int
    gain: float
    prediction: Prediction


@dataclass(frozen=True)
class Suggestion:
    """The rows to label next.

    Attributes:
        rows: in the order to label, the largest gain first.
        repeated: rows of the pool left out because their prompt is that of an earlier one.
        unfamiliar: rows left out because they are too unlike the training rows.
    """

    rows: tuple[SuggestedRow, ...]
    repeated: int
    unfamiliar: int

    def reasons(self) -> list[dict[str, Any]]:
        """Return what every front end says of each suggested row, in order.

        ``row``, ``gain``, ``predicted`` (the most probable label now; where several may be right the list of those
        present), ``probs`` by label, ``entropy`` (nats), ``familiarity``.
        """
        return [
            {
                "row": one.row,
                "gain": one.gain,
                "predicted": now.label if now.labels_present is None else now.labels_present,
                "probs": now.probs,
                "entropy": now.total,
                "familiarity": now.familiarity,
            }
            for one in self.rows
            for now in [one.prediction]
        ]


def suggest(
    predictor: Predictor,
    rows: Sequence[EncodedRow],
    count: int,
    *,
    least_familiarity: float = 0.0,
    batch_size: int = 8,
    track: Tracker = _silently,
) -> Suggestion:
    """Return at most ``count`` rows of a pool in the order to label them; a row costs an answer.

    Args:
        rows: of the predictor's ``encode``.
        least_familiarity: rows of less (``Prediction.familiarity``) are not chosen, where the artifact has one.
        track: shows the progress of the pass.

    Raises:
        ConfigError: fewer than one row to choose.
        DataError: no rows, or no row that may be chosen.
        NonFiniteError: NaN or infinity in an answer.
    """
    if count < 1:
        raise ConfigError(f"{count} rows are to be chosen: ask for at least 1")
    if not rows:
        raise DataError("there are no rows to choose from")
    answers, gains = dict[int, Prediction](), dict[int, float]()
    also: tuple[PredictiveName, ...] = ("laplace",) if predictor.artifact.manifest.has_adapter else ()
    for index in track(batches(rows, batch_size), "answering"):
        some = predictor.predict([rows[i] for i in index], also=also, covariance=bool(also))
        gains.update(zip(index, gains_of(some), strict=True))
        # A pool of covariances would be more than the memory of most machines.
        answers.update((i, replace(one, logit_covariance=None)) for i, one in zip(index, some, strict=True))
    everyone = range(len(rows))
    chosen = most_telling(rows, [answers[i] for i in everyone], [gains[i] for i in everyone], count, least_familiarity)
    if not chosen.rows:
        raise DataError(f"none of {len(rows)} rows is like enough to the training rows: lower the least familiarity")
    return chosen


def gains_of(predictions: Sequence[Prediction]) -> list[float]:
    """Return what each row's label is expected to tell, nats: ``information``, if the rows have a ``logit_covariance``.

    Without an adapter they have none. Then it is ``epistemic``: the mutual information of the label and the weights of
    the heads that answer (BALD, Houlsby et al., arXiv 1112.5745), or the entropy of the answer where that is less.
    """
    if all(one.logit_covariance is None for one in predictions):
        return [one.total if one.epistemic is None else one.epistemic for one in predictions]
    return list(information(predictions).tolist())


def most_telling(
    rows: Sequence[EncodedRow],
    predictions: Sequence[Prediction],
    gains: Sequence[float],
    count: int,
    least_familiarity: float,
) -> Suggestion:
    """Return at most ``count`` rows whose label tells most; one whose prompt comes twice counts once.

    Args:
        predictions: the rows' answers; gains: of ``gains_of``.
    """
    first = _first_of_each(rows)
    familiar = [one.familiarity is None or one.familiarity >= least_familiarity for one in predictions]
    free = [i for i in range(len(rows)) if first[i] and familiar[i]]
    order = sorted(free, key=lambda i: -gains[i])[:count]
    chosen = tuple(SuggestedRow(i, gains[i], predictions[i]) for i in order)
    return Suggestion(chosen, first.count(False), first.count(True) - len(free))


def _first_of_each(rows: Sequence[EncodedRow]) -> list[bool]:
    """Return of each row whether no earlier one has the same prompt and possible labels."""
    seen: set[tuple[tuple[int, ...], int]] = set()
    first = []
    for row in rows:
        key = (tuple(row.token_ids), row.class_count)
        first.append(key not in seen)
        seen.add(key)
    return first
