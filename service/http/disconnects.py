"""Work that nobody waits for any more is given up: the client has closed its connection, or the time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from service.errors import ClientGoneError, DeadlineError

T = TypeVar("T")


async def while_awaited(request: Request, work: Coroutine[Any, Any, T], *, timeout_s: float | None = None) -> T:
    """Return the work's result; cancel it when the client goes away or the time is over, and wait for its end.

    The request's body has to be read to its end before.

    Raises:
        ClientGoneError: the connection closed first.
        DeadlineError: the time was over first.
        Exception: whatever the work raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGoneError("the client closed its connection before the answer was ready")
        raise DeadlineError("the request's deadline passed before its answer was ready: send less or try later")
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    # The body was read to its end: whatever comes next is the end of the connection.
    while (await request.receive())["type"] != "http.disconnect":
        continue
