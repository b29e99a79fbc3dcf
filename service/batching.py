"""Which waiting rows go to the device together. Pure: no clock, no lock, no thread.

A padded batch costs (rows) x (longest row) tokens, so rows of like length belong together. The oldest
row of its kind is always in the batch: however odd its length, it never waits behind later arrivals. Kinds
take turns: cheap rows do not wait behind a queue of dear ones, nor the other way round.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """One row as the batch former sees it.

    Attributes:
        tokens: its length, without padding.
        group: rows of different groups never share a batch (the artifact and what is asked).
    """

    tokens: int
    group: Hashable


def next_group(waiting: Sequence[Waiting], served: Mapping[Hashable, int]) -> Hashable:
    """Return the group whose turn it is: the one that was served longest ago; among equals, the oldest row's.

    Args:
        waiting: rows in order of arrival, at least one.
        served: by group the number of its last batch; groups that are not there were never served.
    """
    return min(dict.fromkeys(row.group for row in waiting), key=lambda group: served.get(group, -1))


def form_batch(waiting: Sequence[Waiting], *, token_budget: int, group: Hashable = None) -> list[int]:
    """Return the positions in ``waiting`` of the next batch, shortest row first.

    Args:
        waiting: rows in order of arrival.
        token_budget: most padded tokens of a batch: rows times the longest row. The group's oldest row goes
            even where it alone is over the budget.
        group: whose rows; None: the oldest row's.

    The batch is a window of the group, sorted by length, that grows from the group's oldest row towards
    whichever neighbour is nearer in length, for as long as the padded size fits.
    """
    if not waiting:
        return []
    group = waiting[0].group if group is None else group
    of_group = [i for i, row in enumerate(waiting) if row.group == group]
    by_length = sorted(of_group, key=lambda i: waiting[i].tokens)
    low = high = by_length.index(of_group[0])
    oldest = waiting[of_group[0]].tokens

    def fits(size: int, longest: int) -> bool:
        return size * longest <= token_budget

    while True:
        size = high - low + 2
        shorter = waiting[by_length[low - 1]].tokens if low > 0 else None
        longer = waiting[by_length[high + 1]].tokens if high + 1 < len(by_length) else None
        down = shorter is not None and fits(size, waiting[by_length[high]].tokens)
        up = longer is not None and fits(size, longer)
        if down and up:
            assert shorter is not None
            assert longer is not None
            up = longer - oldest < oldest - shorter
            down = not up
        if down:
            low -= 1
        elif up:
            high += 1
        else:
            return by_length[low : high + 1]


def halves(size: int) -> list[range]:
    """Return the two ranges that split ``size`` positions in the middle, for a retry after a failure."""
    middle = size // 2
    return [range(middle), range(middle, size)]


def padded_tokens(lengths: Sequence[int]) -> int:
    """Return what a batch of rows of these lengths costs: rows times the longest."""
    return len(lengths) * max(lengths, default=0)
