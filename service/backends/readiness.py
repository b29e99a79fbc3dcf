"""Whether new requests are to be sent here, and the watch over a backend, whose failed device ends the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from laplora.errors import LaploraError
from service.errors import DrainingError
from service.lifecycle import Lifecycle
from service.scoring.backend import Backend

if TYPE_CHECKING:
    from service.artifacts.host import ArtifactHost
    from service.lifecycle import Lifecycle
    from service.scoring.backend import Backend
    from service.scoring.model import Model

#: Seconds between two looks.
LOOK_S = 0.1


def require_ready(artifacts: ArtifactHost, lifecycle: Lifecycle, backend: Backend) -> Model:
    """Return the active model, if new requests are to be sent here. From any thread.

    Raises:
        DeviceFaultError, DeviceStalledError, DrainingError, NotReadyError: they are not.
    """
    model = artifacts.require_taking()
    if lifecycle.leaving:
        raise DrainingError("the server is about to stop: send new requests elsewhere")
    backend.require_responsive()
    return model


def is_ready(artifacts: ArtifactHost, lifecycle: Lifecycle, backend: Backend) -> bool:
    """Return whether new requests are to be sent here."""
    try:
        require_ready(artifacts, lifecycle, backend)
    except LaploraError:
        return False
    return True


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
