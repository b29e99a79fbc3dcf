"""Folds of rows: the same for every expert, and none parts a group."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from laplora.head.errors import HeadError, check

#: Folds by default.
FOLDS = 5


def fold_numbers(rows: int, folds: int = FOLDS, seed: int = 0, groups: torch.Tensor | None = None) -> torch.Tensor:
    """Return (rows,) int64 the fold of each row, from 0.

    Folds of groups of one size have as many, to one. Else the largest groups are dealt first, each to the fold that
    has the fewest rows. Folds depend on the seed, the number of rows and their groups alone.

    Args:
        folds: at least 2; with fewer groups, each group is a fold.
        groups: (rows,) int64, rows of one number stay in one fold; None: each row is a group.

    Raises:
        HeadError: fewer than two folds or groups, or groups of another number of rows.
    """
    if folds < 2:
        raise HeadError(f"cross-fitting needs at least two folds, got {folds}")
    if groups is not None and len(groups) != rows:
        raise HeadError(f"each of {rows} rows needs a group, got {len(groups)}")
    _, group, sizes = torch.unique(
        torch.arange(rows) if groups is None else groups, return_inverse=True, return_counts=True
    )
    if len(sizes) < 2:
        what = "rows" if rows < 2 else "groups of rows"
        raise HeadError(f"cross-fitting needs at least two {what}, and three where each fold chooses precisions too")
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    count = min(folds, len(sizes))
    fold_of, loads = torch.zeros(len(sizes), dtype=torch.int64), [0] * count
    if bool((sizes == sizes[0]).all()):
        for number, part in enumerate(order.tensor_split(count)):
            fold_of[part] = number
    else:
        for one in order[sizes[order].argsort(descending=True, stable=True)].tolist():
            fold_of[one] = loads.index(min(loads))
            loads[int(fold_of[one])] += int(sizes[one])
    return fold_of[group]


def parted(folds: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield for each fold number, ascending, the rows outside it and those in it, both int64 and ascending."""
    for number in torch.unique(folds).tolist():
        yield (folds != number).nonzero()[:, 0], (folds == number).nonzero()[:, 0]


def checked_folds(folds: int | torch.Tensor, rows: int, seed: int, groups: torch.Tensor | None) -> torch.Tensor:
    """Return (rows,) int64 fold numbers, made or as given; HeadError as ``fold_numbers``, or for a parted group."""
    if isinstance(folds, int):
        return fold_numbers(rows, folds, seed, groups)
    numbers = torch.as_tensor(folds).cpu()
    check("fold numbers", numbers, (rows,), torch.int64)
    if len(torch.unique(numbers)) < 2:
        raise HeadError("cross-fitting needs at least two folds, got the same number for all rows")
    pairs = numbers[:0] if groups is None else torch.unique(torch.stack([groups.cpu(), numbers], 1), dim=0)[:, 0]
    if len(pairs) != len(torch.unique(pairs)):
        raise HeadError("rows of one group lie in several folds: give each group one fold number")
    return numbers


def folds_of_new(folds: torch.Tensor, new: int, old_groups: torch.Tensor, new_groups: torch.Tensor) -> torch.Tensor:
    """Return (new,) int64 folds of rows that come later: their group's, or the smallest fold's for a new group."""
    known = dict(zip(old_groups.tolist(), folds.tolist(), strict=True))
    numbers, counts = torch.unique(folds, return_counts=True)
    loads = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    dealt = torch.zeros(new, dtype=torch.int64)
    for place, group in enumerate(new_groups.tolist()):
        fold = known.setdefault(group, min(loads, key=lambda number: loads[number]))
        loads[fold] += 1
        dealt[place] = fold
    return dealt
