"""Reading a JSON body from someone who may be hostile: bounded, strict, and never a 500.

FastAPI's own reader takes bodies of any size and Python's JSON dialect (NaN, lone surrogates, nesting
until RecursionError). Here a route reads at most ``max_body_bytes`` and parses with pydantic's parser.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from service.errors import BodyTooLargeError, ClientGoneError, DeadlineError, InvalidJsonError, MediaTypeError

#: A refused body is read and thrown away up to this many times the limit: a client that is still sending
#: when the connection closes would see a reset instead of the 413.
_DISCARD_FACTOR = 16
_DISCARD_TIMEOUT_S = 2.0
#: Largest body that is parsed on the event loop, which takes a few ms at worst.
_PARSED_INLINE_BYTES = 32 * 1024


class JsonBodyRoute(APIRoute):
    """A route whose JSON body is bounded and parsed strictly before FastAPI sees it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, wrapped where the endpoint has a body."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def bounded(request: Request) -> Response:
            settings = request.app.state.service.settings
            check_media_type(request.headers)
            try:
                async with asyncio.timeout(settings.request_timeout_s):
                    raw = await read_bounded(request, settings.max_body_bytes)
            except TimeoutError:
                raise DeadlineError("the request's deadline passed before its body had come") from None
            # A large body takes a while to parse: other requests are served meanwhile.
            large = len(raw) > _PARSED_INLINE_BYTES
            value = await run_in_threadpool(parse_json, raw) if large else parse_json(raw)
            return await handler(_ParsedRequest(request, raw, value))

        return bounded


class _ParsedRequest(Request):
    """A request whose body was read and parsed."""

    def __init__(self, request: Request, raw: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._raw = raw
        self._value = value

    async def body(self) -> bytes:
        return self._raw

    async def json(self) -> Any:
        return self._value


def check_media_type(headers: Headers, others: Sequence[str] = ()) -> None:
    """Check that the body is declared as plain UTF-8 JSON.

    Args:
        others: the media types that will do in place of JSON's.

    Raises:
        MediaTypeError: another type, charset or encoding.
    """
    message = Message()
    message["content-type"] = headers.get("content-type", "")
    media_type = message.get_content_type()
    known = media_type in others if others else media_type == "application/json" or media_type.endswith("+json")
    if "content-type" not in headers or not known:
        wanted = " or ".join(others or ["application/json"])
        raise MediaTypeError(f"the body must have Content-Type {wanted}", field="content-type")
    charset = message.get_param("charset", "utf-8")
    if not isinstance(charset, str) or charset.lower().replace("_", "-") not in ("utf-8", "utf8", "us-ascii"):
        raise MediaTypeError("the body must be UTF-8", field="content-type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError("the body must not be compressed", field="content-encoding")


async def read_bounded(request: Request, limit: int) -> bytes:
    """Return the request's body.

    Args:
        limit: most bytes.

    Raises:
        BodyTooLargeError: more bytes announced, or come, than ``limit``; ``got`` is what is known by then.
        ClientGoneError: the client went away while sending.
    """
    announced = announced_bytes(request.headers)
    stream = request.stream()
    chunks: list[bytes] = []
    size = 0
    try:
        if announced > limit:
            # A client that asked for "100-continue" has sent nothing yet, and is told before it does.
            if "expect" not in request.headers:
                await discard(stream, _DISCARD_FACTOR * limit)
            raise _too_large(limit, announced)
        async for chunk in stream:
            size += len(chunk)
            if size > limit:
                await discard(stream, _DISCARD_FACTOR * limit)
                raise _too_large(limit, size)
            chunks.append(chunk)
    except ClientDisconnect:
        raise ClientGoneError("the client closed its connection while sending the body") from None
    return b"".join(chunks)


def announced_bytes(headers: Headers) -> int:
    """Return the body's length as announced, 0 where none is."""
    declared = headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0


async def discard(stream: AsyncIterator[bytes], limit: int, *, timeout_s: float = _DISCARD_TIMEOUT_S) -> None:
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


def parse_json(raw: bytes) -> Any:
    """Return the parsed body.

    Raises:
        InvalidJsonError: empty, not UTF-8, not JSON, NaN or infinity, a lone surrogate, nested too deep, or a key
            that comes twice in one object: which of its values was meant, nobody can say.
    """
    if not raw.strip():
        raise InvalidJsonError("the body is empty: send a JSON object", field="body")
    try:
        value = from_json(raw, allow_inf_nan=False)
        # pydantic's parser keeps the last of two values without a word; Python's, slower, shows each object's pairs.
        json.loads(raw, object_pairs_hook=_check_keys)
    except ValueError as error:
        # The parsers' messages name the problem and the position, never the text.
        raise InvalidJsonError(f"the body is not valid JSON: {error}", field="body") from None
    return value


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) < len(pairs):
        raise InvalidJsonError("an object in the body has the same key twice: send each key once", field="body")
