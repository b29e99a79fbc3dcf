"""A watch on the event loop: how late it runs what is due, and what fails in it unseen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from service.telemetry.logs import log_crash, logger

#: Seconds between two looks. A block shows as its length less at most this.
INTERVAL_S = 0.1


@asynccontextmanager
async def watched(observe: Callable[[float], None]) -> AsyncIterator[None]:
    """While this is open, give ``observe`` the seconds by which the running loop is late, ten times a second.

    A block is observed once it is over, in one piece. Exceptions of tasks that nobody awaits are logged without their
    messages, which may hold a client's text.
    """
    loop = asyncio.get_running_loop()
    kept = loop.get_exception_handler()
    loop.set_exception_handler(_log)
    watch = asyncio.create_task(_watch(observe))
    try:
        yield
    finally:
        watch.cancel()
        loop.set_exception_handler(kept)


async def _watch(observe: Callable[[float], None]) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        observe(max(0.0, clock() - due))


def _log(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if error is not None:
        log_crash("a task of the event loop failed", error)
    else:
        logger.error("event loop: %s", context["message"], extra={"event": "crash"})
