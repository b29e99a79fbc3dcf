"""Requests as the service takes them, several at a time, and a bar of how many inputs are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from laplora.errors import DataError

Row = TypeVar("Row")
#: True labels by ``prediction_id``, or pairs of both; where several may be right, a list of those that are.
Labels = Mapping[str, str | Sequence[str]] | Iterable[tuple[str, str | Sequence[str]]]

Item = TypeVar("Item")
Result = TypeVar("Result")

Advance = Callable[[int], None]


def stated(**options: Any) -> dict[str, Any]:
    """Return the options that are set. Older services refuse options that they do not know."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def body_of(inputs: Iterable[Mapping[str, Any]], artifact: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body."""
    return {"inputs": [dict(row) for row in inputs], **stated(artifact=artifact, options=dict(options) or None)}


def checked(inputs: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the inputs; raise DataError where there are none, or one is no mapping."""
    number = -1
    for number, row in enumerate(inputs):
        if not isinstance(row, Mapping):
            raise DataError(f"input {number} is {type(row).__name__}: each is a mapping of the template's fields")
        yield row
    if number < 0:
        raise DataError("no inputs: the service answers one or more")


def batches(rows: Sequence[Row], size: int) -> list[Sequence[Row]]:
    """Return the rows in batches, in order; no batch of no rows."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def feedback_items(labels: Labels) -> list[dict[str, Any]]:
    pairs = labels.items() if isinstance(labels, Mapping) else labels
    return [
        {"prediction_id": prediction_id, "label": label if isinstance(label, str) else list(label)}
        for prediction_id, label in pairs
    ]


async def each(call: Callable[[Item], Awaitable[Result]], items: Iterable[Item], in_flight: int) -> list[Result]:
    """Return what ``call`` returns for each item, in order, from ``in_flight`` calls at a time.

    After a failure or a cancellation the calls under way are cancelled, and no other starts.
    """
    room = asyncio.Semaphore(in_flight)

    async def one(item: Item) -> Result:
        async with room:
            return await call(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def advancing(total: int, progress: bool | Advance) -> Iterator[Advance]:
    """Yield a function to call with the number of inputs answered since its last call: the given one, or a bar's."""
    if progress is False:
        yield lambda count: None
    elif progress is True:
        from tqdm.auto import tqdm

        with tqdm(total=total, unit="input") as bar:
            yield bar.update
    else:
        yield progress
