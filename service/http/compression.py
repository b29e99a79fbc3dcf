"""Bodies packed with gzip: requests', bounded by what they unpack to, and answers', where the client takes them so."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Executor
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLargeError, InvalidRequestError

#: zlib's word for gzip's frame, with the largest window.
_GZIP = 16 + zlib.MAX_WBITS
#: What a request's Content-Encoding may be.
TAKEN_ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip"})
#: Most bytes that are unpacked before others have their turn.
_PIECE_BYTES = 2**16
#: An answer is packed from so many bytes on, and a piece from so many on by a thread: 100 KB take half a millisecond.
_LEAST_BYTES, _INLINE_BYTES = 1024, 2**15
#: What gets smaller. Not lines of JSON: of a download that breaks off, every line that came is to be read.
_PACKED_TYPES = ("application/json", "text/", "image/svg+xml")


class Packer(Protocol):
    """Of zlib, whose own class has no public name."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


async def unpacked(body: AsyncIterator[bytes], headers: Headers, limit: int) -> AsyncGenerator[bytes]:
    """Yield what a body holds, in pieces of at most 64 KiB where it is packed.

    Whoever reads it counts the bytes, and stops: no more than a piece is unpacked beyond.

    Args:
        limit: most bytes of the packed body itself, which may hold nothing.

    Raises:
        BodyTooLargeError: more than ``limit``.
        InvalidRequestError: Content-Encoding says gzip, and it is not, or not one whole stream of it.
    """
    if headers.get("content-encoding", "").lower() not in ("gzip", "x-gzip"):
        async for chunk in body:
            yield chunk
        return
    unpacker, received, full = zlib.decompressobj(_GZIP), 0, False
    async for chunk in body:
        received += len(chunk)
        if received > limit:
            raise BodyTooLargeError(
                f"the packed body has at least {received} bytes, {limit} is the most", limit=limit, got=received
            )
        while chunk or full:
            if unpacker.eof:
                raise _no_gzip("more follows after its end: pack it as one stream")
            try:
                piece = unpacker.decompress(chunk, _PIECE_BYTES)
            except zlib.error:
                raise _no_gzip("it is something else, or damaged: pack it, or leave the header out") from None
            chunk = unpacker.unconsumed_tail or unpacker.unused_data
            # It may hold more than it gave, of bytes that it has already taken.
            full = len(piece) == _PIECE_BYTES and not unpacker.eof
            if piece:
                yield piece
            await asyncio.sleep(0)
    if not unpacker.eof:
        raise _no_gzip("it breaks off before its end: send all of it")


def _no_gzip(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"the body should be gzip, as Content-Encoding says: {why}", field="content-encoding")


class PackedAnswers:
    """ASGI middleware: packs answers with gzip for clients that take it; not small ones, nor downloads of lines.

    Args:
        threads: where large pieces are packed.
    """

    def __init__(self, app: ASGIApp, threads: Executor) -> None:
        self._app, self._threads = app, threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        accepted = scope["method"] != "HEAD" and takes_gzip(Headers(scope=scope).get("accept-encoding", ""))
        begin: Message | None = None
        packer: Packer | None = None

        async def send_packed(message: Message) -> None:
            nonlocal begin, packer
            if message["type"] == "http.response.start" and _gets_smaller(message):
                MutableHeaders(scope=message).add_vary_header("Accept-Encoding")
                if accepted:
                    begin, packer = message, zlib.compressobj(1, zlib.DEFLATED, _GZIP)
                    return
            elif packer is not None:
                more = message.get("more_body", False)
                message = {**message, "body": await self._packed(packer, message.get("body", b""), last=not more)}
                if begin is not None:
                    _say_so(begin, None if more else len(message["body"]))
                    await send(begin)
                    begin = None
            await send(message)

        await self._app(scope, receive, send_packed)

    async def _packed(self, packer: Packer, piece: bytes, *, last: bool) -> bytes:
        if len(piece) <= _INLINE_BYTES:
            return _pack(packer, piece, last)
        return await asyncio.get_running_loop().run_in_executor(self._threads, _pack, packer, piece, last)


def _pack(packer: Packer, piece: bytes, last: bool) -> bytes:
    return packer.compress(piece) + (packer.flush() if last else b"")


def _say_so(begin: Message, length: int | None) -> None:
    """Let an answer's headers say that it is packed, and its length, None where it comes in pieces."""
    headers = MutableHeaders(scope=begin)
    headers["content-encoding"] = "gzip"
    if length is not None:
        headers["content-length"] = str(length)
    elif "content-length" in headers:
        del headers["content-length"]
    if (tag := headers.get("etag", "")).startswith('"'):
        # The same content in other bytes.
        headers["etag"] = f"W/{tag}"


def takes_gzip(accepted: str) -> bool:
    """Return whether an Accept-Encoding header names gzip, or what it does not name, and does not forbid it."""
    weights: dict[str, str] = {}
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        weights[name.strip()] = weight.replace(" ", "")
    found = weights.get("gzip", weights.get("*"))
    return found is not None and not (found.startswith("q=0") and not found.strip("q=0."))


def _gets_smaller(begin: Message) -> bool:
    """Return whether an answer that begins so is long enough, or of unknown length, and of a type that shrinks."""
    headers = Headers(raw=begin["headers"])
    return (
        int(headers.get("content-length", _LEAST_BYTES)) >= _LEAST_BYTES
        and begin["status"] not in (204, 206, 304)
        and "content-encoding" not in headers
        and headers.get("content-type", "").startswith(_PACKED_TYPES)
    )
