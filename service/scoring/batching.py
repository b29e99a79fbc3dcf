"""Which waiting rows go to the device together. Pure: no clock, no lock, no thread.

Whose turn it is (``service.scoring.fairness``) decides on one row, the oldest of a request. A padded batch costs (rows)
x (longest row) tokens, so the rest are rows of like length, whoever sent them. The more of the queue these may come
from, the less is padding, and the longer a row of a rare length waits. So they come in tiers: see ``_tiers``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass

from service.scoring.fairness import Request, Turns, callers_ahead, charged, in_turn, tree_of, whose_turn

#: A batch is chosen from this many batches, or this share of the waiting rows if that is more.
WINDOW_BATCHES = 2
WINDOW_SHARE = 1 / 4
#: The fixed cost of a batch, as a share of a full one's rows: a tenth on a GPU with the largest useful batches, a
#: quarter on a processor (docs/lab-notes.md). Its rows share it. Else a caller with single rows would get fifty batches
#: for another's full one.
BATCH_SHARE = 1 / 8


@dataclass(frozen=True, eq=False)
class Waiting:
    """One row as the batch former sees it: the tokens that the device runs for it, and the request it came with."""

    tokens: int
    request: Request


def next_batch(waiting: Sequence[Waiting], turns: Turns, *, token_budget: int) -> tuple[list[int], Turns]:
    """Return the positions in ``waiting`` of the next batch, shortest row first, and the turns after it.

    Args:
        waiting: rows in order of arrival, at least one.
        turns: as the last batch left them.
        token_budget: most padded tokens of a batch.
    """
    rows_of: dict[Request, list[int]] = {}
    for i, row in enumerate(waiting):
        rows_of.setdefault(row.request, []).append(i)
    tree = tree_of(rows_of)
    turn = whose_turn(turns, tree)
    ahead = callers_ahead(turns, tree, turn, token_budget)
    tiers = _tiers(waiting, turns, turn.group, ahead, token_budget)
    batch = form_batch(waiting, seed=rows_of[turn][0], token_budget=token_budget, tiers=tiers)
    by_itself = BATCH_SHARE * token_budget
    rows, tokens = Counter[Request](), Counter[Request]()
    for i in batch:
        rows[waiting[i].request] += 1
        tokens[waiting[i].request] += waiting[i].tokens
    gone = {request for request, count in rows.items() if count == len(rows_of[request])}
    batch_tokens = max(token_budget, tokens.total()) + by_itself
    times = 1 + by_itself / tokens.total()
    charges = [(request, times * count) for request, count in tokens.items()]
    return batch, charged(turns, tree, charges, gone, batch_tokens=batch_tokens)


def _tiers(
    waiting: Sequence[Waiting], turns: Turns, group: Hashable, ahead: Collection[str], token_budget: int
) -> list[Collection[int]]:
    """Return the positions of a group's rows, most wanted first.

    First come the rows whose turns are next, of callers that are not ahead; then all rows of these callers; then the
    rows whose turns are next, of callers that are ahead. The rest of those is in no tier.
    """
    lengths = [row.tokens for row in waiting]
    others: dict[str, list[int]] = {}
    of_ahead: dict[str, list[int]] = {}
    group_tokens = 0
    for i, row in enumerate(waiting):
        if row.request.group == group:
            group_tokens += row.tokens
            (of_ahead if row.request.caller in ahead else others).setdefault(row.request.caller, []).append(i)
    most = max(WINDOW_BATCHES * token_budget, WINDOW_SHARE * group_tokens)
    next_others, next_of_ahead = (_first(in_turn(turns, rows, lengths), lengths, most) for rows in (others, of_ahead))
    return [next_others, {i for rows in others.values() for i in rows}, next_of_ahead]


def _first(order: Iterable[int], lengths: Sequence[int], tokens: float) -> set[int]:
    """Return the positions of the first rows that have this many tokens together."""
    first: set[int] = set()
    for i in order:
        if tokens <= 0:
            break
        first.add(i)
        tokens -= lengths[i]
    return first


def form_batch(
    waiting: Sequence[Waiting], *, seed: int, token_budget: int, tiers: Sequence[Collection[int]] = ()
) -> list[int]:
    """Return the positions in ``waiting`` of the batch around one row, shortest row first.

    The batch takes the rows of the seed's group that are nearest to it in length, rows of one length in order of
    arrival, for as long as the padded size fits.

    Args:
        seed: position of the row that goes in any case, even where it alone is over the budget.
        tiers: positions of rows; those of a later tier take the room that the earlier ones leave, and rows of none the
            room that is left then.
    """
    group, length = waiting[seed].request.group, waiting[seed].tokens
    candidates_of: list[list[int]] = [[] for _ in range(len(tiers) + 1)]
    for i, row in enumerate(waiting):
        if i != seed and row.request.group == group:
            candidates_of[next((k for k, tier in enumerate(tiers) if i in tier), len(tiers))].append(i)

    def distance(i: int) -> tuple[int, bool]:
        return abs(waiting[i].tokens - length), waiting[i].tokens < length

    batch, longest = [seed], length
    for candidates in candidates_of:
        for i in sorted(candidates, key=distance):
            longer = max(longest, waiting[i].tokens)
            if longer * (len(batch) + 1) <= token_budget:
                batch.append(i)
                longest = longer
    return sorted(batch, key=lambda i: (waiting[i].tokens, i))


def padded_tokens(lengths: Sequence[int]) -> int:
    """Return what a batch of rows of these lengths costs: rows times the longest."""
    return len(lengths) * max(lengths, default=0)
