"""The application for another ASGI server than ``python -m service`` runs: ``uvicorn --factory service.asgi:create``.

Settings come from the environment (``LAPLORA_*``). A device that failed or hung ends the process with status 75, and
what is open is answered before. Limits on request heads, on connections and on answers that nobody takes are the
server's own; readiness fails once it begins to stop the application, so give load balancers time before (``preStop``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.exit_status import ExitStatus
from service.process import exempt_from_collection, leave, prepare_for_torch
from service.settings import Settings
from service.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from fastapi import FastAPI


def create() -> FastAPI:
    """Return the application, as the environment's settings say."""
    settings = Settings()
    configure_logging(settings.log_level, settings.log_format)
    prepare_for_torch()
    from service.app import create_app

    return create_app(
        settings,
        on_load_failure=lambda error: leave(ExitStatus.START_FAILED),
        on_change=exempt_from_collection,
        on_failed=lambda: leave(ExitStatus.DEVICE_FAULT),
    )
