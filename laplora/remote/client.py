"""The objects of a store by obstore: the one place that knows its calls, its options and what its errors mean.

Keys and endpoints come from the environment, as obstore reads them: ``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
``GOOGLE_SERVICE_ACCOUNT`` and the like. A stream that breaks off goes on by itself where the server can.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from laplora.errors import first_line

#: Seconds to connect, and between two pieces of an answer.
_CONNECT_S, _SILENCE_S = 10, 60
_RETRY_S = 60
#: Bytes that are handed to obstore at once, of content that comes in pieces.
_WRITTEN_BYTES = 2**20
_ALLOW_HTTP = ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")
#: When obstore says that an object changed last whose server does not say it.
_NOT_SAID = "1970-01-01T00:00:00+00:00"
_STATUS = re.compile(r"status(?: code)?:? (\d{3})\b")
#: Statuses below 500 of a server that may answer another time.
_LATER = (408, 425, 429)


class StoreError(Exception):
    """A store that does not do what it was asked.

    Attributes:
        kind: whether it refuses, is not reached or fails after all tries, or anything else.
        name: of obstore's own class of the error.
        reason: the first line of what it says, 200 characters at most, in which addresses can be.
    """

    def __init__(self, kind: Literal["refused", "unreachable", "other"], error: Exception) -> None:
        super().__init__(kind)
        self.kind, self.name, self.reason = kind, type(error).__name__, first_line(error)[:200]


class State(NamedTuple):
    """An object's bytes, its entity tag, None where its store has none, and the time of its last change, ISO 8601."""

    size: int
    etag: str | None
    changed: str

    @property
    def version(self) -> str | None:
        """A value that changes with the content: the tag, or else bytes and time; None where the store says neither."""
        return self.etag or (None if self.changed == _NOT_SAID else f"{self.size} {self.changed}")


class StoreClient:
    """The objects below a URL. Blocks, and is for any thread.

    Every method raises FileNotFoundError where there is no such object, or no such bucket, and StoreError.

    Args:
        web: whether it is a web server; otherwise its scheme says which kind of store it is.
        tries: again, after the first; transfer_s: seconds that one request may take.
        part_bytes: of a part of what is read and written, two of which are under way at once.

    Raises:
        ModuleNotFoundError: obstore is not installed.
        ValueError: no such kind of store, or the environment says something that it cannot use; its first line says
            which, and can hold the URL.
    """

    def __init__(
        self, url: str, *, web: bool = False, tries: int = 3, transfer_s: float = 86_400, part_bytes: int = 8 * 2**20
    ) -> None:
        from obstore.exceptions import BaseError
        from obstore.store import HTTPStore, from_url

        self._part_bytes = part_bytes
        plain = any(os.environ.get(name, "").lower() in ("1", "true") for name in _ALLOW_HTTP)
        options: Any = {
            "client_options": {
                "allow_http": url.startswith("http://") if web else plain,
                "connect_timeout": timedelta(seconds=_CONNECT_S),
                "read_timeout": timedelta(seconds=_SILENCE_S),
                "timeout": timedelta(seconds=transfer_s),
            },
            "retry_config": {"max_retries": tries, "retry_timeout": timedelta(seconds=_RETRY_S)},
        }
        # For https://, obstore would choose by the host, which may be that of a bucket.
        opened: Any = HTTPStore.from_url if web else from_url
        try:
            self._store: Any = opened(url, **options)
        except (BaseError, ValueError) as error:
            raise ValueError(first_line(error)[:200]) from None

    def state(self, name: str) -> State:
        """Return what tells whether an object changed."""
        import obstore

        with _translated_errors():
            return _state(obstore.head(self._store, name))

    def read(self, name: str) -> tuple[int, Iterator[bytes]]:
        """Return an object's size in bytes, and its bytes part by part."""
        import obstore

        with _translated_errors():
            answer = obstore.get(self._store, name)
            parts = iter(answer.stream(min_chunk_size=self._part_bytes))
        return answer.meta["size"], _each(parts)

    def read_range(self, name: str, begin: int, end: int, state: State) -> bytes | None:
        """Return the bytes from ``begin`` to before ``end``; None where the object is of another version by now."""
        import obstore
        from obstore.exceptions import PreconditionError

        options: Any = {"range": (begin, end), **({"if_match": state.etag} if state.etag else {})}
        with _translated_errors():
            try:
                answer = obstore.get(self._store, name, options=options)
            except PreconditionError:
                return None
            # Not every web server looks at the condition, and there is none without a tag.
            return bytes(answer.bytes()) if _state(answer.meta).version == state.version else None

    def put(self, name: str, content: bytes | Path) -> None:
        """Write an object, which is there as a whole once this returns."""
        import obstore

        with _translated_errors():
            obstore.put(self._store, name, content, chunk_size=self._part_bytes, max_concurrency=2)

    def write(self, name: str, content: Iterable[bytes]) -> None:
        """Write an object in parts as they come; it is there once the last one is, and not where ``content`` raises."""
        import obstore

        with _translated_errors():
            writer = obstore.open_writer(self._store, name, buffer_size=self._part_bytes, max_concurrency=2)
        for part in _gathered(content):
            with _translated_errors():
                writer.write(part)
        with _translated_errors():
            writer.close()

    def remove(self, name: str) -> None:
        """Remove an object; stores differ in whether one that is not there is an error."""
        import obstore

        with _translated_errors():
            obstore.delete(self._store, name)


def _state(meta: Any) -> State:
    return State(meta["size"], meta["e_tag"], meta["last_modified"].isoformat())


def _each(parts: Iterator[Any]) -> Iterator[bytes]:
    while True:
        with _translated_errors():
            part = next(parts, None)
        if part is None:
            return
        yield bytes(part)


def _gathered(content: Iterable[bytes]) -> Iterator[bytes]:
    """Yield bytes in pieces that are worth a call of obstore."""
    held: list[bytes] = []
    size = 0
    for part in content:
        held.append(part)
        size += len(part)
        if size >= _WRITTEN_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _status(error: Exception) -> int | None:
    """Return the status of the answer that an error of obstore tells of, which it has in its text alone."""
    match = _STATUS.search(str(error))
    return int(match[1]) if match else None


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn obstore's errors, whose messages hold the whole address and what the store answered, into ours."""
    from obstore.exceptions import (
        BaseError,
        GenericError,
        NotFoundError,
        PermissionDeniedError,
        UnauthenticatedError,
    )

    try:
        yield
    except (NotFoundError, FileNotFoundError):
        raise FileNotFoundError(2, "no such object") from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise StoreError("refused", error) from None
    except (GenericError, OSError) as error:
        status = _status(error) or 500
        raise StoreError("refused" if status < 500 and status not in _LATER else "unreachable", error) from None
    except BaseError as error:
        raise StoreError("other", error) from None
