"""Whose turn it is: fair queueing across callers, across the kinds of answer one caller asks for, across its requests.

The same rule at each of the three levels. A member's virtual time is the tokens that it was charged over its weight.
Next is who has the least; among equals, whose oldest row came first. A clock runs with what is charged on average.
Who is new or comes back starts at the clock: nobody saves up credit while away. Everybody in a batch is charged for its
rows and a part of what the batch costs by itself, at most ``MOST_AHEAD`` batches ahead of the clock.

Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996) with the clock of weighted fair queueing (Demers, Keshav,
Shenker, SIGCOMM 1989) for those who arrive. Pure: no clock of the wall, no lock, no thread.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from typing import Any

#: Callers whose names start so are evaluation jobs: they have time.
JOB_PREFIX = "job:"
JOB_WEIGHT = 0.25
#: Most that anybody is charged ahead of the clock, in batches.
MOST_AHEAD = 2


def is_job(caller: str) -> bool:
    return caller.startswith(JOB_PREFIX)


def weight_of(caller: str) -> float:
    """Return what a caller's share of the device is in proportion to: 1, and less for an evaluation job."""
    return JOB_WEIGHT if is_job(caller) else 1.0


@dataclass(frozen=True, eq=False)
class Request:
    """Rows that one caller asked for at once; rows of different groups never share a batch."""

    caller: str
    group: Hashable


@dataclass(frozen=True)
class Turns:
    """The state of one level between two batches.

    Attributes:
        clock: virtual time at which the last batch was taken; ``coming``: once that batch's tokens are counted.
        given: virtual time of each that waited then or is ahead of the clock.
        waiting: those that still waited after it.
        inner: the level below, by member.
    """

    clock: float = 0.0
    coming: float = 0.0
    given: Mapping[Hashable, float] = field(default_factory=dict)
    waiting: Collection[Hashable] = frozenset()
    inner: Mapping[Hashable, Turns] = field(default_factory=dict)

    def start(self, member: Hashable) -> float:
        """Return a waiting member's virtual time: its own if it waited all along, else no less than the clock."""
        given = self.given.get(member, 0.0)
        return given if member in self.waiting else max(given, self.clock)


#: Waiting requests by caller and group: three levels of members, each with the members below it, none below a request.
#: Members are in the order of their oldest rows.
Tree = dict[Any, Any]


def tree_of(requests: Iterable[Request]) -> Tree:
    """Return requests with a waiting row, the one with the oldest row first, by caller and group."""
    tree: Tree = {}
    for request in requests:
        tree.setdefault(request.caller, {}).setdefault(request.group, {})[request] = {}
    return tree


def whose_turn(turns: Turns, tree: Tree) -> Request:
    """Return the request whose oldest row goes next."""
    while True:
        chosen = min(tree, key=turns.start)
        turns, tree = turns.inner.get(chosen, Turns()), tree[chosen]
        if not tree:
            assert isinstance(chosen, Request)
            return chosen


def in_turn(turns: Turns, rows_of: Mapping[str, Sequence[int]], tokens: Sequence[int]) -> Iterator[int]:
    """Yield the positions of waiting rows in the order in which they would go alone, if only callers took turns.

    Args:
        rows_of: positions of each caller's rows, in order of arrival.
        tokens: of the row at each position.
    """

    def timed(caller: str, rows: Sequence[int]) -> Iterator[tuple[float, int]]:
        time, weight = turns.start(caller), weight_of(caller)
        for i in rows:
            yield time, i
            time += tokens[i] / weight

    return (i for _, i in merge(*(timed(caller, rows) for caller, rows in rows_of.items())))


def callers_ahead(turns: Turns, tree: Tree, seed: Request, tokens: int) -> set[str]:
    """Return the callers that have had this many tokens more, by weight, than the one whose turn it is."""
    seeds = turns.start(seed.caller)
    return {caller for caller in tree if (turns.start(caller) - seeds) * weight_of(caller) >= tokens}


def charged(
    turns: Turns,
    tree: Tree,
    tokens: Collection[tuple[Request, float]],
    gone: Collection[Request],
    *,
    batch_tokens: float,
    level: int = 0,
) -> Turns:
    """Return the turns after a batch.

    Args:
        tree: what had a waiting row before it.
        tokens: what each request that is in the batch is charged.
        gone: requests that have no row left.
        batch_tokens: of this batch or a full one, whichever has more; ``MOST_AHEAD`` is measured in it.
        level: 0 where the members of the tree are callers, 1 groups, 2 requests.
    """
    # Everything here is one pass over the members, for there may be thousands, or over the batch.
    starts = {member: turns.start(member) for member in tree}
    clock = max(turns.coming, min(starts.values()))
    weights = sum(map(weight_of, tree)) if level == 0 else len(tree)
    given, inner = {**turns.given, **starts}, dict(turns.inner)
    waiting = set(tree)
    parts: dict[Any, list[tuple[Request, float]]] = {}
    for request, count in tokens:
        member = (request.caller, request.group, request)[level]
        parts.setdefault(member, []).append((request, count))
    for member, part in parts.items():
        start, weight = starts[member], weight_of(member) if level == 0 else 1.0
        end = start + sum(count for _, count in part) / weight
        given[member] = max(start, min(end, clock + MOST_AHEAD * batch_tokens / weight))
        if tree[member]:
            below = inner.get(member, Turns())
            inner[member] = charged(below, tree[member], part, gone, batch_tokens=batch_tokens, level=level + 1)
        if not inner[member].waiting if tree[member] else member in gone:
            waiting.remove(member)
    kept = {member: time for member, time in given.items() if time > clock or member in waiting}
    return Turns(
        clock=clock,
        coming=clock + sum(count for _, count in tokens) / weights,
        given=kept,
        waiting=waiting,
        inner={member: below for member, below in inner.items() if member in kept},
    )
