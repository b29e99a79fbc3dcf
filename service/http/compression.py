"""Bodies packed with gzip: requests', bounded by what they unpack to, and answers."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

from service.errors import BodyTooLargeError, InvalidRequestError

#: zlib's word for gzip's frame, with the largest window.
_GZIP = 16 + zlib.MAX_WBITS
#: The allowed values of a request's Content-Encoding.
TAKEN_ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip"})
#: Most bytes that are unpacked before others have their turn.
_PIECE_BYTES = 2**16
#: In Accept-Encoding, that gzip is refused (RFC 9110, 12.4.2).
_REFUSED = re.compile(r"gzip\s*;\s*q=0(\.0*)?\s*(,|$)", re.IGNORECASE)


class PackedAnswers(GZipMiddleware):
    """ASGI middleware: Starlette's, which by itself packs also where gzip is refused."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _REFUSED.search(Headers(scope=scope).get("accept-encoding", "")):
            scope = {**scope, "headers": [one for one in scope["headers"] if one[0] != b"accept-encoding"]}
        await super().__call__(scope, receive, send)


async def unpacked(body: AsyncIterator[bytes], headers: Headers, limit: int) -> AsyncGenerator[bytes]:
    """Yield what a body holds, in pieces of at most 64 KiB where it is packed.

    The reader counts the bytes and stops: at most one piece more is unpacked.

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
