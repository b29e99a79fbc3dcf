"""A file of this machine or an object of a store: read by range, of one version, and written whole.

A place is a path, or the URL of an object in a store that obstore knows, such as ``s3://BUCKET/KEY``. Credentials and
the endpoint come from the environment, as obstore reads them: ``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, and
``AWS_ALLOW_HTTP`` for an endpoint without TLS.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from laplora.errors import ConfigError, DataError, needs
from laplora.files.atomic import file_sha256, write_whole
from laplora.remote.client import State, StoreClient, StoreError

#: Bytes that one request to a store asks for.
_RANGE_BYTES = 8 * 2**20
#: Bytes of a part of an object: there may be 10,000 of them.
_PART_BYTES = 64 * 2**20


def place_of(place: str | Path) -> LocalFile | StoredObject:
    """Return the file at a path, or the object at a URL; ConfigError: none that can be used."""
    if "://" in str(place):
        return StoredObject(str(place))
    if not Path(place).name:
        raise ConfigError(f"{place or 'no text'}: expected the path of a file")
    return LocalFile(Path(place))


def absolute(place: str | Path) -> str:
    """Return a place as workers in other folders know it: a URL as it is, a path from the root."""
    return str(place) if "://" in str(place) else str(Path(place).absolute())


class LocalFile:
    """A file of this machine, or one that is mounted here."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        return self.path.exists()

    def version(self) -> str:
        """Return size in bytes and time of the last change; FileNotFoundError: it is not there."""
        return _version(self.path.stat())

    def identity(self) -> dict[str, Any]:
        """Return what says that it is the same on another day: size and SHA-256, for which it is read."""
        return {"bytes": self.path.stat().st_size, "sha256": file_sha256(self.path)}

    def open(self, version: str) -> BinaryIO:
        """Return the file, to read from and to seek in; DataError: it is of another version by now."""
        file = self.path.open("rb")
        if _version(os.fstat(file.fileno())) != version:
            file.close()
            raise changed(self.path)
        return file

    def write(self, content: Iterable[bytes], *, new: bool = False) -> None:
        """Write it whole, or not at all; FileExistsError: it is to be ``new``, and is there once it is written."""
        write_whole(self.path, content, new=new)


class StoredObject:
    """An object of a store, which becomes visible with its last byte. Errors of the store are DataError."""

    def __init__(self, url: str) -> None:
        self.url = url
        folder, _, self._name = url.rpartition("/")
        if not self._name or folder.endswith("/"):
            raise ConfigError(f"{url}: expected the URL of an object, such as s3://BUCKET/KEY.jsonl")
        try:
            self._client = StoreClient(folder, part_bytes=_PART_BYTES)
        except ModuleNotFoundError as error:
            raise needs("s3", error) from None
        except ValueError as error:
            raise ConfigError(f"{url}: is in no store that can be used ({error})") from None

    def exists(self) -> bool:
        try:
            self._state()
        except FileNotFoundError:
            return False
        return True

    def version(self) -> str:
        """Return its ETag, or where there is none its size and the time of its last change.

        Raises:
            FileNotFoundError: it is not there; DataError: its server says neither ETag nor time.
        """
        if (version := self._state().version) is None:
            raise DataError(
                f"{self.url}: its server gives neither an ETag nor a time of the last change, so it could be "
                "replaced unnoticed: give a copy of it"
            )
        return version

    def identity(self) -> dict[str, Any]:
        """Return size and ETag, and where there is none the time of the last change."""
        state = self._state()
        return {"bytes": state.size, "etag": state.etag, **({} if state.etag else {"changed": state.changed})}

    def open(self, version: str) -> BinaryIO:
        """Return the object; each read asks for one range of this version. DataError: it is of another by now."""
        state = self._state()
        if state.version != version:
            raise changed(self.url)
        return io.BufferedReader(_Ranges(self, state), _RANGE_BYTES)

    def read_range(self, begin: int, end: int, state: State) -> bytes:
        """Return the bytes from ``begin`` to before ``end``; DataError: it is of another version by now."""
        with self._answering():
            if (part := self._client.read_range(self._name, begin, end, state)) is None:
                raise changed(self.url)
            return part

    def write(self, content: Iterable[bytes], *, new: bool = False) -> None:
        """Send it in parts as they come; the object is there once the last one is.

        Raises:
            FileExistsError: it is to be ``new``, and is there before the last part is sent: obstore sends parts
                without a condition.
        """
        with self._answering():
            self._client.write(self._name, self._unless_there(content) if new else content)

    def _unless_there(self, content: Iterable[bytes]) -> Iterator[bytes]:
        yield from content
        if self.exists():
            raise FileExistsError(17, "is there already", self.url)

    def _state(self) -> State:
        with self._answering():
            return self._client.state(self._name)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if error.filename is not None:  # of this machine: what is sent is read meanwhile
                raise
            raise FileNotFoundError(2, "no such object", self.url) from None
        except StoreError as error:
            raise DataError(f"{self.url}: the store refuses or does not answer ({error.reason})") from None


class _Ranges(io.RawIOBase):
    """An object as a file that is read range by range."""

    def __init__(self, stored: StoredObject, state: State) -> None:
        self._stored, self._state = stored, state
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._state.size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._place + len(buffer), self._state.size)
        if end <= self._place:
            return 0
        part = self._stored.read_range(self._place, end, self._state)
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)


def _version(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"


def changed(place: str | Path) -> DataError:
    """Return the error of a source that is not what it was when the run began."""
    return DataError(f"{place}: was changed while it was read: start again, with a new output")
