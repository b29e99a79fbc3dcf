"""Fitting a head: precisions by folds, one refit on all rows, and an honest answer for each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from laplora.head.choice import CONSTANT, chosen, factor_of
from laplora.head.errors import HeadError
from laplora.head.folds import FOLDS, checked_folds, folds_of_new, parted
from laplora.head.head import Head
from laplora.head.likelihood import Likelihood
from laplora.head.newton import Labels, mode_of
from laplora.head.posterior import spread_of
from laplora.head.rows import Features, Given, Rows, checked_rows
from laplora.head.scaling import Scaling
from laplora.head.spaces import Designs, space_of


@dataclass(frozen=True)
class FittedHead:
    """A head with its rows, which it can learn more of and forget.

    Attributes:
        head: fitted on all rows.
        held_out: (rows, classes) float64 log probabilities of each row by a fit that knows nothing of its fold, nats;
            NaN where ``honest`` was off.
        rows: labelled; folds: (rows,) int64; outer: by fold number, the head of the rows outside it.
        inner: by fold number ``held_out`` of a fit that has never seen this fold, NaN in it, and wherever precisions
            were given; empty of a head that learned or forgot.
    """

    head: Head
    held_out: torch.Tensor = field(repr=False)
    folds: torch.Tensor = field(repr=False)
    rows: Rows = field(repr=False)
    outer: Mapping[int, Head] = field(repr=False)
    inner: Mapping[int, torch.Tensor] = field(repr=False, default_factory=dict)

    @property
    def precisions(self) -> Mapping[str, float]:
        """Prior precisions of ``head`` by block, and ``constant``."""
        return self.head.precisions

    def learn(
        self,
        features: Features,
        labels: torch.Tensor,
        *,
        offset: Given = None,
        class_mask: Given = None,
        groups: Given = None,
    ) -> FittedHead:
        """Return the head of these rows too: the mode of all under the precisions, scaling and temperature as fitted.

        Args:
            groups: (rows,) int64; a known group's rows join its fold. None: each row is a new group.

        Raises:
            HeadError: rows that do not fit those of the head.
        """
        old = self.rows
        if groups is None:
            count = len(next(iter(features.values())) if isinstance(features, Mapping) else features)
            groups = torch.arange(count) + 1 + int(old.groups.max())
        kind = (offset, class_mask, groups, old.likelihood, old.targets.shape[1])
        new = checked_rows(features, labels, *kind)
        widths = [{name: block.shape[1:] for name, block in each.blocks.items()} for each in (old, new)]
        if widths[0] != widths[1] or (new.offset is None) != (old.offset is None):
            raise HeadError(f"new rows need the blocks {sorted(old.blocks)} of the same width, and an offset as before")
        folds = folds_of_new(self.folds, len(new), old.groups, new.groups)
        return self._refitted(old.joined(new), torch.cat([self.folds, folds]))

    def forget(self, places: torch.Tensor) -> FittedHead:
        """Return the head without some rows: the mode of the others, precisions, scaling and temperature as fitted.

        Args:
            places: int64 row numbers, in the order in which rows were fitted and learned.

        Raises:
            HeadError: a place that is none, or fewer than two folds left.
        """
        every, places = torch.arange(len(self.rows)), torch.as_tensor(places)
        if not bool(torch.isin(places, every).all()):
            raise HeadError(f"places must be from 0 to {len(every) - 1}, got {places.min()} to {places.max()}")
        left = every[~torch.isin(every, places)]
        if len(torch.unique(self.folds[left])) < 2:
            raise HeadError("forgetting leaves fewer than two folds of rows: keep more, or fit anew")
        return self._refitted(self.rows.at(left), self.folds[left])

    def _refitted(self, rows: Rows, folds: torch.Tensor) -> FittedHead:
        head, moved = mode_under(rows, self.head)
        outer = {
            number: mode_under(rows.at(rest), self.outer[number], moved[rest])[0]
            for rest, fold in parted(folds)
            if (number := int(folds[fold[0]])) in self.outer
        }
        return FittedHead(head, answered_by_folds(rows, folds, outer), folds, rows, outer)


def fit(
    features: Features,
    labels: torch.Tensor,
    *,
    offset: Given = None,
    temper: bool = False,
    class_mask: Given = None,
    groups: Given = None,
    folds: int | torch.Tensor = FOLDS,
    seed: int = 0,
    likelihood: Likelihood = "categorical",
    honest: bool = True,
    precisions: Mapping[str, float] | None = None,
    classes: int | None = None,
    without: Mapping[int, torch.Tensor] | None = None,
) -> FittedHead:
    """Return a logistic regression with a Gaussian prior on standardised features, fitted to labelled rows.

    It is scikit-learn's ``LogisticRegression(C=1 / precision)`` (of two classes ``2 / precision``) on the same
    standardised features, but that the constant has a prior too (10 nats wide; with an offset chosen as a block's is).
    Beside the features it takes about three times their memory as float32, and up to .5 GB that spares time.

    Args:
        features: (rows, width) of any float type, or blocks of them by name, each with a precision of its own. For a
            conditional logit (rows, options, width): one weight vector for all options, which are the classes.
        labels: (rows,) int64; or (rows, classes) probabilities; under ``bernoulli`` (rows, labels) of 0 to 1.
        offset: (rows, classes) log probabilities that the head corrects; under ``bernoulli`` logits.
        temper: whether the offset is divided by a temperature, which is fitted first, on the same rows.
        class_mask: (rows, classes) bool, the possible classes; None: all.
        groups: (rows,) int64, rows of one number are in one fold; folds: how many, or (rows,) int64 each row's.
        honest: whether each row also gets an answer of a fit without its fold (``held_out``): scaling, temperature and
            precisions are chosen again on the rest alone. It costs as much again as the number of folds.
        precisions: by block, and ``constant`` if wanted; None: chosen by folds.
        classes: how many there are, where int64 labels may not show the last one.
        without: by fold number the labels as known without its rows, (rows, classes) probabilities.

    Raises:
        HeadError: shapes that do not fit, NaN, impossible labels, too few groups.
    """
    rows = checked_rows(features, labels, offset, class_mask, groups, likelihood, classes)
    numbers = checked_folds(folds, len(rows), seed, rows.groups)
    given = None if precisions is None else _checked_precisions(precisions, rows)
    parts = list(parted(numbers)) if honest else []

    def fitted(some: Rows, of: torch.Tensor, posterior: bool = False) -> tuple[Head, torch.Tensor]:
        best, answers = given, torch.full_like(some.targets, torch.nan)
        if best is None:
            tried, answers = chosen(some, of, temper, seed)
            best = min(tried, key=lambda pair: pair[1])[0]
        return _mode(some, Scaling.of(some), factor_of(some, temper), best, None, posterior)[0], answers

    head, _ = fitted(rows, numbers, posterior=True)
    outer, inner = dict[int, Head](), dict[int, torch.Tensor]()
    for rest, fold in parts:
        number = int(numbers[fold[0]])
        known = rows if without is None else replace(rows, targets=without[number])
        outer[number], answers = fitted(known.at(rest), numbers[rest])
        inner[number] = torch.full_like(rows.targets, torch.nan).index_copy(0, rest, answers)
    return FittedHead(head, answered_by_folds(rows, numbers, outer), numbers, rows, outer, inner)


def mode_under(rows: Rows, head: Head, start: Given = None) -> tuple[Head, torch.Tensor]:
    """Return the head that these rows make under the scaling, temperature and precisions of another one.

    Beside it what it moves their logits by, (rows, classes) nats; ``start``: that of a like head, to be there sooner.
    """
    if start is None:
        start = head.logits_of(rows) - Labels.of(rows, head.inverse_temperature).base
    return _mode(rows, head.scaling, head.inverse_temperature, head.precisions, start, head.spread is not None)


def _mode(
    rows: Rows, scaling: Scaling, factor: float | None, precisions: Mapping[str, float], start: Given, posterior: bool
) -> tuple[Head, torch.Tensor]:
    names = [*rows.blocks] + ([] if rows.conditional else ["constant"])
    variances = torch.tensor([1 / precisions[name] for name in names], dtype=torch.float64)
    space = space_of(Designs.of(rows, None, scaling, exact=True), exact=True).at(variances)
    mode = mode_of(space, Labels.of(rows, factor), start)
    spread = spread_of(space, names, mode.probs, rows.likelihood) if posterior else None
    weights = dict(zip(names, space.weights(mode.vector), strict=True))
    constant = torch.zeros(0).double() if rows.conditional else weights.pop("constant")[0]
    classes = rows.targets.shape[1]
    return Head(rows.likelihood, scaling, weights, constant, classes, dict(precisions), factor, spread), mode.moved


def answered_by_folds(rows: Rows, folds: torch.Tensor, outer: Mapping[int, Head]) -> torch.Tensor:
    """Return log probabilities of rows, (rows, classes) float64, each by the head without its fold, nats."""
    answers = torch.full_like(rows.targets, torch.nan)
    for number, head in outer.items():
        places = (folds == number).nonzero()[:, 0]
        some = rows.at(places)
        answers[places] = head.log_probs(some.blocks, some.offset, some.class_mask)
    return answers


def _checked_precisions(precisions: Mapping[str, float], rows: Rows) -> dict[str, float]:
    if set(precisions) - (set() if rows.conditional else {"constant"}) != set(rows.blocks):
        raise HeadError(f"precisions need the blocks {sorted(rows.blocks)}, got {sorted(precisions)}")
    if not all(value > 0 for value in precisions.values()):
        raise HeadError(f"precisions must be positive (infinity leaves a block out), got {dict(precisions)}")
    return {**precisions} if rows.conditional else {"constant": CONSTANT, **precisions}
