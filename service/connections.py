"""What a connection may do before its request is whole: a request head has a time limit, and what is no HTTP an answer.

uvicorn waits for a request head as long as the client likes. A client that sends one byte of it at a time would hold
its connection, and one of the process's file descriptors, for ever.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import MalformedHttpError, error_content, kind_of
from service.headers import ALWAYS

_log = logging.getLogger("laplora.service")


def protocol(head_timeout_s: float) -> type[H11Protocol]:
    """Return the protocol that uvicorn runs for each connection.

    Args:
        head_timeout_s: seconds from a connection's start, or the first byte of a later request on it, in which a
            request's line and headers must have come; the connection is closed otherwise.
    """

    class BoundedHead(H11Protocol):
        """HTTP/1.1 with a time limit for request heads."""

        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            if not self._in_request:
                self._await_head()
            super().data_received(data)
            if self._in_request:
                self._forget_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_head()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            request_id = uuid.uuid4().hex
            error = MalformedHttpError("the request is not HTTP/1.1: check its request line, headers and framing")
            body = json.dumps(error_content(error, request_id)).encode()
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "x-request-id": request_id,
                **ALWAYS,
                "connection": "close",
            }
            head = h11.Response(status_code=kind_of(error).status, headers=list(headers.items()), reason=b"Bad Request")
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        @property
        def _in_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _await_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(head_timeout_s, self._give_up)

        def _forget_head(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _give_up(self) -> None:
            _log.debug("a request head did not come in time", extra={"event": "head_timeout"})
            # At once, and not when the client has read what was written: it may never.
            self.transport.abort()

    return BoundedHead


def trusted(proxies: str) -> dict[str, Any]:
    """Return uvicorn's settings for forwarded headers: those of these addresses count, those of anybody else do not.

    Without them uvicorn would believe whoever connects from 127.0.0.1, or from where FORWARDED_ALLOW_IPS says.
    """
    return {"proxy_headers": bool(proxies), "forwarded_allow_ips": proxies}
