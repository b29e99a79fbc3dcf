"""python -m service: serve one artifact until SIGTERM or Ctrl-C, then leave without failing a request."""

from __future__ import annotations

import asyncio
import math
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from service.exit_status import ExitStatus
from service.process import exempt_from_collection, leave, prepare_for_torch
from service.settings import Settings
from service.starting import can_start, parse_settings
from service.telemetry.logs import configure_logging, logger

if TYPE_CHECKING:
    from starlette.datastructures import State
    from starlette.types import ASGIApp

    from service.artifacts.host import ArtifactHost
    from service.lifecycle import Lifecycle
    from service.scoring.backend import Backend


class DrainingServer(uvicorn.Server):
    """A server that, on SIGTERM or SIGINT, answers what is in flight and refuses the rest with 503.

    On SIGTERM it first answers everything for ``drain_delay_s`` while readiness fails, so that whoever sends requests
    can learn of it; not where it has not been ready yet. It leaves ``drain_s`` later at the latest; a second signal
    ends the wait. Once the device has failed or hung, the application ends it.
    """

    def __init__(self, config: uvicorn.Config, parts: State) -> None:
        super().__init__(config)
        self._settings: Settings = parts.settings
        self._lifecycle: Lifecycle = parts.lifecycle
        self._backend: Backend = parts.backend
        self._artifacts: ArtifactHost = parts.artifacts
        self._drain_at: float | None = None
        self._drain_until = math.inf
        self._told = False
        self.failed = False

    def leave(self) -> None:
        """Stop because the device has failed; called on the event loop."""
        self.should_exit = True

    def fail(self) -> None:
        """Stop because the artifact cannot be served; called from the loading thread."""
        self.failed = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to leave; on a second signal, leave now."""
        if self._drain_at is not None:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
            return
        was_ready = self._artifacts.active is not None
        delay_s = self._settings.drain_delay_s if sig == signal.SIGTERM and was_ready else 0.0
        self._drain_at = time.monotonic() + delay_s
        # No more than this in a signal's handler: the rest may need a lock that is held where the signal came.
        self._lifecycle.leaving = True

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Listen, and say where; where that fails, end with ``START_FAILED`` instead of uvicorn's own status."""
        try:
            await super().startup(sockets)  # type: ignore[arg-type]
        except SystemExit:
            self.fail()
            if not self.lifespan.should_exit:
                logger.error(
                    "cannot listen on %s, port %d (uvicorn's line above says why): --port takes another one",
                    self.config.host,
                    self.config.port,
                    extra={"event": "listen_failed"},
                )
            return
        for server in getattr(self, "servers", []):
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
                more = ", where the web UI is; Ctrl-C ends the server" if self._settings.log_format == "text" else ""
                logger.info("listening on %s%s", address, more, extra={"event": "listening", "address": address})

    @property
    def exit_status(self) -> ExitStatus:
        """The process's exit status, once ``serve`` has returned."""
        if self._backend.failed:
            return ExitStatus.DEVICE_FAULT
        return ExitStatus.START_FAILED if self.failed or not self.started else ExitStatus.CLEAN

    async def on_tick(self, counter: int) -> bool:
        """Run ten times a second; true ends the server."""
        if self._drain_at is not None and not self.should_exit:
            self._go_on_leaving(self._drain_at)
        if self.should_exit:
            # Open requests are answered with 503 now, instead of a cut connection.
            self._lifecycle.stop()
        return await super().on_tick(counter)

    def _go_on_leaving(self, drain_at: float) -> None:
        now = time.monotonic()
        if now < drain_at:
            if not self._told:
                self._told = True
                self._lifecycle.leave()
                logger.info("leaving", extra={"event": "leaving", "delay_s": self._settings.drain_delay_s})
            return
        if not self._lifecycle.draining:
            self._drain_until = now + self._settings.drain_s
            logger.info("draining", extra={"event": "draining", "in_flight": self._backend.requests})
            self._lifecycle.drain()
        if not self.server_state.tasks or now >= self._drain_until:
            self.should_exit = True


def server_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """Return how uvicorn serves the application."""
    # Here, and not at the top of the file: --help should not wait for it.
    from service.http.connections import most_connections, protocol
    from service.http.in_flight import SharedLimit

    most, proxies = most_connections(settings.max_connections), settings.trusted_proxies
    bounded = protocol(
        SharedLimit("connections", "max_connections", most, settings.client_share),
        proxies=proxies,
        head_timeout_s=settings.head_timeout_s,
        send_timeout_s=settings.send_timeout_s,
    )
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=bounded,
        # Another protocol would know none of these limits.
        ws="none",
        # Not whatever happens to be installed: the limits and times here are measured and tested on this loop.
        loop="asyncio",
        # Left out, uvicorn would believe whoever connects from 127.0.0.1, or from where FORWARDED_ALLOW_IPS says.
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.leave_s),
    )


def main() -> int:
    """Serve; return the process's exit status, an ``ExitStatus``."""
    settings = parse_settings(Settings, sys.argv[1:])
    configure_logging(settings.log_level, settings.log_format)
    if not can_start(settings):
        return ExitStatus.USAGE
    prepare_for_torch()
    # Only now: --help and a wrong path should not wait for torch.
    from laplora.errors import ConfigError
    from service.app import create_app

    try:
        app = create_app(
            settings,
            on_load_failure=lambda error: server.fail(),
            on_change=exempt_from_collection,
            on_failed=lambda: server.leave(),
        )
    except ConfigError as error:
        logger.error("%s", error, extra={"event": "bad_settings"})
        return ExitStatus.USAGE
    server = DrainingServer(server_config(app, settings), app.state)
    asyncio.run(server.serve())
    logger.info("stopped", extra={"event": "stopped", "status": int(server.exit_status)})
    return server.exit_status


if __name__ == "__main__":
    leave(main())
