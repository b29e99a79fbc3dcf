"""Limits of connections: their number, and time limits for request heads and for answers that nobody takes.

uvicorn waits for both as long as the client likes, and meanwhile a file descriptor of the process is taken. A
connection that no request comes on keeps its place until another one needs it.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import uuid
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from service.errors import ClientTooManyRequestsError, MalformedHttpError, ServiceError, TooManyRequestsError
from service.http.error_answers import error_response
from service.http.headers import EVERY_ANSWER
from service.http.in_flight import SharedLimit

_log = logging.getLogger("laplora.service")

#: A client must take this much of an answer in ``send_timeout_s``, or all that is left.
_TAKEN_BYTES = 64 * 1024
#: Open files that are no connections: the listening socket, logs, jobs, an artifact that is read.
_OTHER_FILES = 64


def most_connections(wanted: int) -> int:
    """Return how many connections there may be: as many as wanted, or fewer where the process may not open the files.

    The process's limit of open files is raised first, as far as it may be without rights.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _OTHER_FILES))


class _WatchedTransport:
    """A transport that says when it is closed: what was written and not yet taken keeps its connection open."""

    def __init__(self, transport: asyncio.Transport, on_close: Callable[[], None]) -> None:
        self._transport = transport
        self._on_close = on_close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._transport.close()
        self._on_close()


def protocol(limit: SharedLimit, *, proxies: str, head_timeout_s: float, send_timeout_s: float) -> type[H11Protocol]:
    """Return the protocol that uvicorn runs for each connection; what does not keep to its limits is closed.

    Args:
        limit: how many connections there are, and of which addresses; those beyond are answered 429, once no other one
            of the address, or of all, is idle: who was so for longest is closed.
        proxies: addresses and networks, with commas between them, that may have all of them.
        head_timeout_s: seconds from a connection's start, or the first byte of a later request on it, in which a
            request's line and headers must have come.
        send_timeout_s: seconds in which a client must take 64 KiB of an answer that waits for it, or all that is left.
    """
    networks = [ip_network(part) for part in proxies.split(",") if part]

    class BoundedConnection(H11Protocol):
        """HTTP/1.1 with time limits for request heads and for answers that are not taken."""

        _address: str | None = None
        _head_timer: asyncio.TimerHandle | None = None
        _taking_timer: asyncio.TimerHandle | None = None
        _unsent_bytes = 0
        #: Whether a request has come that waits until the answers before it are taken.
        _next_waits = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            watched = _WatchedTransport(transport, self._await_taking)
            super().connection_made(cast(asyncio.Transport, watched))
            address = self.client[0] if self.client else ""
            try:
                self._take_place(address)
            except ServiceError as error:
                _log.debug("a connection was refused", extra={"event": "connection_refused"})
                self._answer_and_close(error)
                return
            self._address = address
            self._await_head()

        def _take_place(self, address: str) -> None:
            add = partial(limit.add, address, 1, whole=any(ip_address(address) in network for network in networks))
            try:
                add()
            except TooManyRequestsError as error:
                idle = [one for one in self.connections if isinstance(one, BoundedConnection) and one._is_idle]
                if isinstance(error, ClientTooManyRequestsError):
                    idle = [one for one in idle if one._address == address]
                if not idle:
                    raise
                longest = min(idle, key=lambda one: cast(asyncio.TimerHandle, one.timeout_keep_alive_task).when())
                longest.timeout_keep_alive_handler()
                longest._leave_place()
                add()

        def _leave_place(self) -> None:
            if self._address is not None:
                limit.remove(self._address, 1)
                self._address = None

        @property
        def _is_idle(self) -> bool:
            """Whether its last answer was taken, and no further request has begun."""
            waits = self.timeout_keep_alive_task is not None and self._address is not None
            return waits and not self.transport.get_write_buffer_size()

        def data_received(self, data: bytes) -> None:
            if not self._in_request:
                self._await_head()
            super().data_received(data)
            if self._in_request or self._next_waits:
                self._forget_head()

        def handle_events(self) -> None:
            if self.flow.write_paused and not self._in_request and self.conn.trailing_data[0]:
                # Begun now, it would keep its place until the answers before it are taken.
                self._next_waits = True
                self.flow.pause_reading()
                self._unset_keepalive_if_required()
                return
            super().handle_events()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._await_taking()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._forget_taking()
            if self.transport.is_closing():
                self._await_taking()
            elif self._next_waits:
                self._next_waits = False
                self.flow.resume_reading()
                self._await_head()
                self.handle_events()
                if self._in_request:
                    self._forget_head()

        def eof_received(self) -> None:
            # The transport closes itself after this.
            self._await_taking()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_head()
            self._forget_taking()
            self._leave_place()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._answer_and_close(
                MalformedHttpError("the request is not HTTP/1.1: check its request line, headers and framing")
            )

        def _answer_and_close(self, error: ServiceError) -> None:
            own_id = uuid.uuid4().hex
            response = error_response(error, own_id)
            more = {"x-request-id": own_id, **EVERY_ANSWER, "connection": "close"}
            head = h11.Response(
                status_code=response.status_code,
                headers=[*response.raw_headers, *((name.encode(), value.encode()) for name, value in more.items())],
                reason=STATUS_PHRASES[response.status_code],
            )
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        @property
        def _in_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _await_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(head_timeout_s, self._give_up, {"event": "head_timeout"})

        def _forget_head(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _await_taking(self) -> None:
            unsent_bytes = self.transport.get_write_buffer_size()
            if self._taking_timer is None and unsent_bytes:
                self._unsent_bytes = unsent_bytes
                self._taking_timer = self.loop.call_later(send_timeout_s, self._look_at_taking)

        def _forget_taking(self) -> None:
            if self._taking_timer is not None:
                self._taking_timer.cancel()
                self._taking_timer = None

        def _look_at_taking(self) -> None:
            self._taking_timer = None
            if self.transport.get_write_buffer_size() > self._unsent_bytes - _TAKEN_BYTES:
                self._give_up({"event": "send_timeout"})
            else:
                self._await_taking()

        def _give_up(self, event: dict[str, str]) -> None:
            _log.debug("a connection was closed: its client was too slow", extra=event)
            # At once, and not when the client has read what was written: it may never.
            self.transport.abort()

    return BoundedConnection
