"""The state of a pass whose rows several processes shared: what each has summed or listed, put together."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import chain, zip_longest
from typing import Any

import torch

from laplora.posterior.passes import State
from laplora.workers import Workers


def state_of_all(workers: Workers, empty: State, own: State, kept: State) -> State:
    """Return the state of all rows, the same in every process; collective.

    Args:
        empty: of no rows; kept: of the rows that were gone over before the processes shared the others.
        own: of this process's batches, of places ``rank``, ``rank + count``, ... after the kept ones; in the first
            process with the kept rows.
    """
    if workers.count == 1:
        return own
    sums: dict[str, tuple[torch.Tensor, ...]] = {}
    lists: dict[str, tuple[torch.Tensor, ...]] = {}
    for field in fields(own):  # type: ignore[arg-type]
        value = getattr(own, field.name)
        if isinstance(value, torch.Tensor):
            sums[field.name] = (value,)
        elif isinstance(value, tuple) and all(isinstance(part, torch.Tensor) for part in value):
            (sums if getattr(empty, field.name) else lists)[field.name] = value
    flat = iter(workers.summed([torch.tensor(own.rows), *chain.from_iterable(sums.values())]))
    found: dict[str, Any] = {"rows": int(next(flat))}
    for name, parts in sums.items():
        whole = tuple(next(flat) for _ in parts)
        found[name] = whole if isinstance(getattr(own, name), tuple) else whole[0]
    for name, parts in lists.items():
        before = getattr(kept, name)
        since = workers.gathered(parts[len(before) :] if workers.first else parts)
        found[name] = (*before, *(part for batch in zip_longest(*since) for part in batch if part is not None))
    return replace(own, **found)  # type: ignore[type-var]
