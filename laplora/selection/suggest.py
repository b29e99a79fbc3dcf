"""The rows of a pool that are worth a label next, in the order to label them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from laplora.answers.prediction import Prediction
from laplora.classifier import batches
from laplora.errors import ConfigError, DataError
from laplora.predictor import Predictor
from laplora.prompts.rows import EncodedRow
from laplora.selection.candidates import CandidateRows
from laplora.selection.greedy import Objective, Selection, greedy
from laplora.selection.methods import METHODS, Method
from laplora.selection.pool import loss_roots, pool_features, pool_states
from laplora.selection.spread import at_random, highest, k_center

Item = TypeVar("Item")


class Tracker(Protocol):
    """Yields items while it shows how far it is; ``laplora.fitting.progress.Progress.track`` is one."""

    def __call__(self, items: Sequence[Item], title: str) -> Iterator[Item]:
        """Yield every item."""


def _silently(items: Sequence[Item], title: str) -> Iterator[Item]:
    yield from items


@dataclass(frozen=True)
class SuggestedRow:
    """A row that is worth a label.

    Attributes:
        row: its place in the pool, from 0.
        gain: what its label is expected to add to those before it: nats by ``information`` and ``prediction``, the
            entropy of the prediction in nats by ``entropy``, a distance by ``k_center``; None at random.
        prediction: by the recommended predictive.
    """

    row: int
    gain: float | None
    prediction: Prediction


@dataclass(frozen=True)
class Suggestion:
    """What to label next.

    Attributes:
        method: by which.
        rows: in the order to label: any first part of them is a batch chosen the same way.
        repeated: rows of the pool left out because their prompt is that of an earlier one.
        unlike: rows left out because they are too unlike the training rows.
    """

    method: Method
    rows: tuple[SuggestedRow, ...]
    repeated: int
    unlike: int


def suggest(
    predictor: Predictor,
    rows: Sequence[EncodedRow],
    count: int,
    method: Method = "information",
    *,
    likeness: Sequence[float] | None = None,
    least_likeness: float = 0.0,
    batch_size: int = 8,
    seed: int = 0,
    track: Tracker = _silently,
) -> Suggestion:
    """Return at most ``count`` rows of a pool in the order to label them.

    A row whose prompt comes twice counts once. Nothing is known of labels: what the posterior expects of them decides.

    Args:
        rows: of the predictor's ``encode``.
        likeness: of each row to the training rows, larger for a row that is more like them; rows below
            ``least_likeness`` are not chosen. None: the answers' familiarity; where the artifact has none, all may be.
        seed: of ``random``.
        track: shows the progress of the passes.

    Raises:
        ConfigError: no such method, fewer than one row to choose, a posterior that the method does not cover, or a pool
            that does not fit in memory.
        DataError: no rows, or no row that may be chosen.
        NonFiniteError: NaN or infinity in an answer.
    """
    if method not in METHODS:
        raise ConfigError(f"rows are not chosen by {method!r}: choose one of {list(METHODS)}")
    if count < 1:
        raise ConfigError(f"{count} rows are to be chosen: ask for at least 1")
    if not rows:
        raise DataError("there are no rows to choose from")
    answers: dict[int, Prediction] = {}
    for index in track(batches(rows, batch_size), "answering"):
        answers.update(zip(index, predictor.predict([rows[i] for i in index]), strict=True))
    predictions = [answers[i] for i in range(len(rows))]
    first = first_of_each(rows)
    allowed = first
    if likeness is None:
        known = [one.familiarity for one in predictions if one.familiarity is not None]
        likeness = known if len(known) == len(rows) else None
    if likeness is not None:
        if len(likeness) != len(rows):
            raise DataError(f"{len(likeness)} numbers of likeness are not those of {len(rows)} rows")
        allowed = first & (torch.tensor(likeness, dtype=torch.float64) >= least_likeness)
    if not bool(allowed.any()):
        raise DataError(f"none of {len(rows)} rows is like enough to the training rows: lower the least likeness")
    selection = _select(predictor, rows, predictions, count, method, allowed, batch_size, seed, track)
    chosen = tuple(
        SuggestedRow(row, None if method == "random" else gain, predictions[row])
        for row, gain in zip(selection.order.tolist(), selection.gains.tolist(), strict=True)
    )
    return Suggestion(method, chosen, int((~first).sum()), int((first & ~allowed).sum()))


def _select(
    predictor: Predictor,
    rows: Sequence[EncodedRow],
    predictions: Sequence[Prediction],
    count: int,
    method: Method,
    allowed: torch.Tensor,
    batch_size: int,
    seed: int,
    track: Tracker,
) -> Selection:
    if method == "random":
        return at_random(count, allowed, torch.Generator().manual_seed(seed))
    if method == "entropy":
        return highest(torch.tensor([one.total for one in predictions], dtype=torch.float64), count, allowed)
    # Rows that cannot be chosen need no pass of their own.
    places = allowed.nonzero()[:, 0]
    free = [rows[i] for i in places.tolist()]
    every = torch.ones(len(free), dtype=torch.bool)
    if method == "k_center":
        states = pool_states(predictor, free, batch_size, lambda items: track(items, "last states"))
        found = k_center(states, count, every)
    else:
        features = pool_features(predictor, free, batch_size, lambda items: track(items, "Jacobians"))
        found = select(predictor, features, [predictions[i] for i in places.tolist()], count, method)
    return Selection(places[found.order], found.gains)


def select(
    predictor: Predictor, features: torch.Tensor, predictions: Sequence[Prediction], count: int, method: Objective
) -> Selection:
    """Return the batch of rows with these features and answers that tells most."""
    manifest, probs = predictor.artifact.manifest, [one.probs for one in predictions]
    root = loss_roots(probs, len(manifest.labels), several=manifest.likelihood == "bernoulli")
    return greedy(CandidateRows(features, root), count, method)


def first_of_each(rows: Sequence[EncodedRow]) -> torch.Tensor:
    """Return (rows,) bool, whether no earlier row has the same prompt and possible labels."""
    seen: set[tuple[tuple[int, ...], int]] = set()
    first = []
    for row in rows:
        key = (tuple(row.token_ids), row.class_count)
        first.append(key not in seen)
        seen.add(key)
    return torch.tensor(first)
