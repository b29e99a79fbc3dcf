"""Reading a JSON body from someone who may be hostile: bounded, strict, and never a 500."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from email.message import Message
from functools import partial
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from service.errors import (
    BatchTooLargeError,
    BodyTooLargeError,
    ClientGoneError,
    DeadlineError,
    MediaTypeError,
    ServiceError,
)
from service.http.compression import TAKEN_ENCODINGS, unpacked
from service.http.json_parsing import MAX_KEYS, most_members, parse_json
from service.settings import Settings

#: A refused body is read and thrown away up to this many times the limit, or so many bytes: a client that is still
#: sending when the connection closes would see a reset instead of the answer.
_DISCARD_FACTOR = 16
_DISCARD_BYTES = 2**26
#: Largest body that is parsed on the event loop, which takes a few ms at worst.
_PARSED_INLINE_BYTES = 32 * 1024
#: The lists of bodies, and the setting that bounds their items.
_BOUNDED_LISTS = {"inputs": "max_inputs", "items": "max_inputs", "rows": "max_condition_rows"}


class JsonBodyRoute(APIRoute):
    """A route whose JSON body is bounded, counted and parsed strictly before FastAPI sees it."""

    #: Most keys of one object of a body.
    max_keys: ClassVar[int] = MAX_KEYS

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, wrapped where the endpoint has a body."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def bounded(request: Request) -> Response:
            settings = request.app.state.settings
            check_media_type(request.headers)
            try:
                async with asyncio.timeout(settings.request_timeout_s):
                    # Only the value is kept: of the bytes, nothing needs more than their parsing.
                    value = await _read_value(request, self.max_keys)
            except TimeoutError:
                raise DeadlineError("the request's deadline passed before its body had come") from None
            _check_lists(value, settings)
            return await handler(_ParsedRequest(request, value))

        return bounded


async def _read_value(request: Request, max_keys: int) -> Any:
    state = request.app.state
    raw = await _read_bounded(request, state.settings.max_body_bytes, request.state.hold)
    settings = state.settings
    most = max(settings.max_inputs, settings.max_condition_rows if settings.conditioning else 0)
    work = partial(parse_json, raw, max_members=most_members(most), max_keys=max_keys)
    if len(raw) <= _PARSED_INLINE_BYTES:
        return work()
    # A large body takes a while to parse: other requests are served meanwhile.
    return await asyncio.get_running_loop().run_in_executor(state.parse_threads, work)


def _check_lists(value: Any, settings: Settings) -> None:
    """Check the number of items in each list of inputs, or of labels, before any of them is validated."""
    for name, items in value.items() if isinstance(value, dict) else ():
        if name not in _BOUNDED_LISTS or not isinstance(items, list):
            continue
        setting = _BOUNDED_LISTS[name]
        limit = getattr(settings, setting)
        if len(items) > limit:
            hint = "send it in parts" if setting == "max_inputs" else "send fewer"
            raise BatchTooLargeError(
                f"the request has {len(items)} {name}, {setting} is {limit}: {hint}",
                field=name,
                limit=limit,
                got=len(items),
            )


class _ParsedRequest(Request):
    """A request whose body was read and parsed."""

    def __init__(self, request: Request, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._value = value

    async def body(self) -> bytes:
        # FastAPI asks only whether there is one.
        return b"parsed"

    async def json(self) -> Any:
        return self._value


def check_media_type(headers: Headers, others: Sequence[str] = ()) -> None:
    """Check that the body is declared as plain UTF-8 JSON, or as one of the other media types in its place.

    Raises:
        MediaTypeError: another type, charset or encoding (gzip may be).
    """
    message = Message()
    message["content-type"] = declared = headers.get("content-type", "")
    media_type = message.get_content_type()
    is_json = media_type == "application/json" or re.fullmatch(r"application/.*\+json", media_type)
    if not declared or not (media_type in others if others else is_json):
        wanted = " or ".join(others or ["application/json"])
        raise MediaTypeError(f"the body must have Content-Type {wanted}", field="content-type")
    charset = message.get_param("charset", "utf-8")
    if not isinstance(charset, str) or charset.lower().replace("_", "-") not in ("utf-8", "utf8", "us-ascii"):
        raise MediaTypeError("the body must be UTF-8", field="content-type")
    if headers.get("content-encoding", "").lower() not in TAKEN_ENCODINGS:
        raise MediaTypeError("the body must be plain or packed with gzip", field="content-encoding")


async def _read_bounded(request: Request, limit: int, hold: Callable[[int], None]) -> bytes:
    """Return the request's body, unpacked.

    Args:
        limit: most bytes, packed and unpacked.
        hold: finds room for so many bytes more, or raises: called with the announced length before anything is
            read, and with what comes beyond it as it comes.

    Raises:
        BodyTooLargeError: more bytes announced, or come, than ``limit``; ``got`` is what is known by then.
        ClientGoneError: the client went away while sending.
        InvalidRequestError: as ``unpacked``.
        ServiceError: what ``hold`` raises.
    """
    announced = announced_bytes(request.headers)
    stream = request.stream()
    content = unpacked(stream, request.headers, limit)
    chunks: list[bytes] = []
    size = held = 0
    try:
        try:
            if announced > limit:
                raise _too_large(limit, announced)
            if announced:
                hold(announced)
                held = announced
            async for chunk in content:
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit, size)
                if size > held:
                    hold(size - held)
                    held = size
                chunks.append(chunk)
        except BodyTooLargeError:
            # A client that asked for "100-continue" sends nothing before it is told to.
            if size or "expect" not in request.headers:
                await discard(stream, _DISCARD_FACTOR * limit)
            raise
        except ServiceError:
            await hear_out(request, stream)
            raise
    except ClientDisconnect:
        raise ClientGoneError("the client closed its connection while sending the body") from None
    return b"".join(chunks)


async def hear_out(request: Request, stream: AsyncIterator[bytes] | None = None) -> None:
    """Read what is still sent on a connection that ends with the answer, and throw it away, as ``discard`` does.

    If the connection stays, the server reads on by itself.

    Args:
        stream: of its body, where some of it was read.

    Raises:
        ClientDisconnect: the client went away.
    """
    closes = request.scope.get("http_version") == "1.0" or "close" in request.headers.get("connection", "").lower()
    if closes and "expect" not in request.headers:
        await discard(stream or request.stream(), _DISCARD_BYTES)


def announced_bytes(headers: Headers) -> int:
    """Return the body's length as announced, 0 where none is."""
    declared = headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0


async def discard(stream: AsyncIterator[bytes], limit: int, *, timeout_s: float = 2.0) -> None:
    """Read what is still sent and throw it away, up to so many bytes and seconds: then the client reads the answer."""
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in stream:
                size += len(chunk)
                if size > limit:
                    return
    except TimeoutError:
        return


def _too_large(limit: int, got: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body has at least {got} bytes, max_body_bytes is {limit}: send it in parts", limit=limit, got=got
    )
