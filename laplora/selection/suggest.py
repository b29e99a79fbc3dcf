"""The rows of a pool that are worth a label next, in the order to label them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from laplora.answers.prediction import Prediction
from laplora.artifact.manifest import Manifest
from laplora.errors import ConfigError, DataError
from laplora.predictor import Predictor
from laplora.prompts.rows import EncodedRow
from laplora.prompts.templates import PromptTemplate
from laplora.selection.candidates import CandidateRows
from laplora.selection.greedy import Objective, Selection, greedy
from laplora.selection.methods import METHODS, Method
from laplora.selection.pool import loss_roots, pool_features, pool_states
from laplora.selection.spread import at_random, highest, k_center

#: Field beside those of a row's template that says why the row was suggested.
SUGGESTED = "suggested"

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
        unfamiliar: rows left out because they are too unlike the training rows.
    """

    method: Method
    rows: tuple[SuggestedRow, ...]
    repeated: int
    unfamiliar: int

    def reasons(self) -> list[dict[str, Any]]:
        """Return what every front end says of each suggested row, in order.

        ``row``, ``gain`` and ``cumulative_gain`` (where there is a gain), ``predicted`` (the most probable label now;
        where several may be right the list of those present), ``probs`` by label, ``entropy`` (nats), ``familiarity``.
        """
        reasons, total = [], 0.0
        for one in self.rows:
            reason: dict[str, Any] = {"row": one.row}
            if one.gain is not None:
                total += one.gain
                reason |= {"gain": one.gain, "cumulative_gain": total}
            now = one.prediction
            reason["predicted"] = now.label if now.labels_present is None else now.labels_present
            reason["probs"] = dict(zip(now.labels, now.probs, strict=True))
            reasons.append(reason | {"entropy": now.total, "familiarity": now.familiarity})
        return reasons


def suggest(
    predictor: Predictor,
    rows: Sequence[EncodedRow],
    count: int,
    method: Method = "information",
    *,
    familiarity: Sequence[float] | None = None,
    least_familiarity: float = 0.0,
    batch_size: int = 8,
    seed: int = 0,
    track: Tracker = _silently,
) -> Suggestion:
    """Return at most ``count`` rows of a pool in the order to label them.

    A row whose prompt comes twice counts once. Nothing is known of labels: what the posterior expects of them decides.

    Args:
        rows: of the predictor's ``encode``.
        familiarity: of each row, larger for a row that is more like the training rows; rows below
            ``least_familiarity`` are not chosen. None: the answers'; where the artifact has none, all may be.
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
    predictions = predictor.predict_all(rows, batch_size=batch_size, track=lambda found: track(found, "answering"))
    first = first_of_each(rows)
    if familiarity is not None and len(familiarity) != len(rows):
        raise DataError(f"{len(familiarity)} numbers of familiarity are not those of {len(rows)} rows")
    known = [one.familiarity for one in predictions] if familiarity is None else familiarity
    allowed = first & familiar_enough(known, least_familiarity)
    if not bool(allowed.any()):
        raise DataError(f"none of {len(rows)} rows is like enough to the training rows: lower the least familiarity")
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
    # Rows that cannot be chosen need no pass of their own.
    places = allowed.nonzero()[:, 0]
    free, answers = [rows[i] for i in places.tolist()], [predictions[i] for i in places.tolist()]
    if method == "entropy":
        found = select_by_entropy(answers, count)
    elif method == "k_center":
        states = pool_states(predictor, free, batch_size, lambda items: track(items, "last states"))
        found = k_center(states, count, torch.ones(len(free), dtype=torch.bool))
    else:
        features = pool_features(predictor, free, batch_size, lambda items: track(items, "Jacobians"))
        found = select(predictor.artifact.manifest, features, answers, count, method)
    return Selection(places[found.order], found.gains)


def select(
    manifest: Manifest, features: torch.Tensor, predictions: Sequence[Prediction], count: int, method: Objective
) -> Selection:
    """Return the batch of rows with these features and answers that tells most."""
    probs = [one.probs for one in predictions]
    root = loss_roots(probs, len(manifest.labels), several=manifest.likelihood == "bernoulli")
    return greedy(CandidateRows(features, root), count, method)


def select_by_entropy(predictions: Sequence[Prediction], count: int) -> Selection:
    """Return the batch of rows whose answers are least certain, each of which adds its entropy, nats."""
    totals = torch.tensor([one.total for one in predictions], dtype=torch.float64)
    return highest(totals, count, torch.ones(len(totals), dtype=torch.bool))


def check_fields(template: PromptTemplate) -> None:
    """Raise ConfigError where a template has the field that says why a row was suggested."""
    if SUGGESTED in template.fields:
        raise ConfigError(
            f"template {template.name!r} has a field {SUGGESTED!r}, in which a suggested row says why it was: it would "
            "be lost. Name the template's field otherwise and fit again"
        )


def familiar_enough(familiarity: Sequence[float | None], least: float) -> torch.Tensor:
    """Return (rows,) bool, whether each row's familiarity is at least ``least``; true of a row that has none."""
    return torch.tensor([one is None or one >= least for one in familiarity])


def first_of_each(rows: Sequence[EncodedRow]) -> torch.Tensor:
    """Return (rows,) bool, whether no earlier row has the same prompt and possible labels."""
    seen: set[tuple[tuple[int, ...], int]] = set()
    first = []
    for row in rows:
        key = (tuple(row.token_ids), row.class_count)
        first.append(key not in seen)
        seen.add(key)
    return torch.tensor(first)
