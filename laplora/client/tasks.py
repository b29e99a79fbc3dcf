"""Several calls at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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
