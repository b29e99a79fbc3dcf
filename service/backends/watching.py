"""The watch over a backend: what does not end is noticed, and a device that failed ends the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.lifecycle import Lifecycle
from service.scoring.backend import Backend

#: Seconds between two looks.
LOOK_S = 0.1


async def watch(backend: Backend, lifecycle: Lifecycle, on_failed: Callable[[], None]) -> None:
    """Look at a backend until it has failed; call ``on_failed`` once nothing is open, or ``lifecycle.leave_s`` later.

    It needs the application's event loop alone, and so runs under any ASGI server. Requests that wait for the device
    are answered by then; only bodies in transfer are still open.
    """
    while not backend.failed:
        await asyncio.sleep(LOOK_S)
        backend.look()
    leave_at = time.monotonic() + lifecycle.leave_s
    while lifecycle.open_requests and time.monotonic() < leave_at:
        await asyncio.sleep(LOOK_S)
    on_failed()
