"""The state of a pass whose rows several processes shared: what each has summed, put together."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import chain
from typing import Any

import torch

from laplora.posterior.passes import State
from laplora.workers import Workers


def state_of_all(workers: Workers, own: State) -> State:
    """Return the state of all rows, the same in every process; collective.

    Args:
        own: of this process's batches; in the first process with the rows that were gone over before.
    """
    if workers.count == 1:
        return own
    sums: dict[str, tuple[torch.Tensor, ...]] = {}
    for field in fields(own):  # type: ignore[arg-type]
        value = getattr(own, field.name)
        if isinstance(value, torch.Tensor):
            sums[field.name] = (value,)
        elif isinstance(value, tuple) and all(isinstance(part, torch.Tensor) for part in value):
            sums[field.name] = value
    flat = iter(workers.summed([torch.tensor(own.rows), *chain.from_iterable(sums.values())]))
    found: dict[str, Any] = {"rows": int(next(flat))}
    for name, parts in sums.items():
        whole = tuple(next(flat) for _ in parts)
        found[name] = whole if isinstance(getattr(own, name), tuple) else whole[0]
    return replace(own, **found)  # type: ignore[type-var]
