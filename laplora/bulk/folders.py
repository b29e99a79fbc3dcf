"""Files of a folder and objects of a store, read by range and written whole.

A place is a path, or the URL of an object in a store that obstore knows, such as ``s3://BUCKET/KEY``. Credentials and
the endpoint come from the environment, as obstore reads them: ``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, and
``AWS_ALLOW_HTTP`` for an endpoint without TLS.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from laplora.errors import ConfigError, DataError, needs
from laplora.files import file_sha256, write_whole
from laplora.remote.client import Client, State, StoreError, Version

#: Bytes that one request to a store asks for.
_RANGE_BYTES = 8 * 2**20
#: Bytes of a part of an object: there may be 10,000 of them.
_PART_BYTES = 64 * 2**20


class Folder(Protocol):
    """What is read from and written to, by name. Errors of a store are DataError; no such file FileNotFoundError."""

    def exists(self, name: str) -> bool:
        """Return whether there is a file, or anything else, of this name."""

    def version(self, name: str) -> str:
        """Return what changes when a file does, as far as can be told without reading it."""

    def identity(self, name: str) -> dict[str, Any]:
        """Return what says that a file is the same on another day: its size in bytes, and a digest or the store's."""

    def open(self, name: str, version: str) -> BinaryIO:
        """Return a file to read from and to seek in; DataError: it is of another version by now."""

    def read(self, name: str) -> bytes:
        """Return a small file's bytes."""

    def write(self, name: str, content: bytes | Iterable[bytes]) -> None:
        """Write a file whole, or not at all."""

    def names(self) -> set[str]:
        """Return the names of the files; none where there is no folder."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that are there, and a folder of this machine that is empty then."""


def place_of(place: str | Path) -> tuple[Folder, str]:
    """Return the folder of a path or URL, and the name in it; ConfigError: none that can be used."""
    text = str(place)
    head, _, name = text.rpartition("/")
    if "://" in text:
        if not name or head.endswith("/"):
            raise ConfigError(f"{text}: expected the URL of an object, such as s3://BUCKET/KEY.jsonl")
        return Store(head), name
    path = Path(place)
    if not path.name:
        raise ConfigError(f"{text or 'no text'}: expected the path of a file")
    return Local(path.parent), path.name


def absolute(place: str | Path) -> str:
    """Return a place as workers in other folders know it: a URL as it is, a path from the root."""
    return str(place) if "://" in str(place) else str(Path(place).absolute())


def folder_of(place: str | Path) -> Folder:
    """Return the folder at a path or URL, which may not be there yet."""
    text = str(place)
    return Store(text.rstrip("/")) if "://" in text else Local(Path(place))


class Local:
    """A folder of this machine, or one that is mounted here."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self, name: str) -> bool:
        """Return whether it is there."""
        return (self.path / name).exists()

    def version(self, name: str) -> str:
        """Return size in bytes and time of the last change."""
        found = (self.path / name).stat()
        return f"{found.st_size} {found.st_mtime_ns}"

    def identity(self, name: str) -> dict[str, Any]:
        """Return size and SHA-256, for which the file is read."""
        path = self.path / name
        return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}

    def open(self, name: str, version: str) -> BinaryIO:
        """Return the file."""
        file = (self.path / name).open("rb")
        found = os.fstat(file.fileno())
        if f"{found.st_size} {found.st_mtime_ns}" != version:
            file.close()
            raise changed(name)
        return file

    def read(self, name: str) -> bytes:
        """Return the bytes."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes | Iterable[bytes]) -> None:
        """Write beside it, then rename."""
        write_whole(self.path / name, content)

    def names(self) -> set[str]:
        """Return the names of what is in the folder."""
        return {found.name for found in self.path.iterdir()} if self.path.is_dir() else set()

    def remove(self, names: Iterable[str]) -> None:
        """Remove them, and the folder where nothing else is in it."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()


class Store:
    """The objects below a URL. An object becomes visible with its last byte."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._client = Client(url, part_bytes=_PART_BYTES)
        except ModuleNotFoundError as error:
            raise needs("s3", error) from None
        except ValueError as error:
            raise ConfigError(f"{url}: is no store that can be used ({error})") from None

    def exists(self, name: str) -> bool:
        """Return whether there is such an object."""
        try:
            self.state(name)
        except FileNotFoundError:
            return False
        return True

    def version(self, name: str) -> str:
        """Return the object's ETag, or where there is none its size and the time of its last change.

        Raises:
            DataError: its server says neither ETag nor time.
        """
        if (version := self.state(name).version) is None:
            raise DataError(
                f"{self.url}/{name}: its server gives neither an ETag nor a time of the last change, so it could be "
                "replaced unnoticed: give a copy of it"
            )
        return version

    def identity(self, name: str) -> dict[str, Any]:
        """Return size and ETag, and where there is none the time of the last change."""
        found = self.state(name)
        return {"bytes": found.size, "etag": found.etag, **({} if found.etag else {"changed": found.changed})}

    def state(self, name: str) -> State:
        """Return what tells whether the object changed."""
        with self._answering():
            return self._client.state(name)

    def open(self, name: str, version: str) -> BinaryIO:
        """Return the object; each read asks for one range of this version."""
        found = self.state(name)
        if found.version != version:
            raise changed(name)
        return io.BufferedReader(_Ranges(self, name, found), _RANGE_BYTES)

    def read(self, name: str) -> bytes:
        """Return the bytes."""
        with self._answering():
            return self._client.load(name)[1]

    def read_range(self, name: str, begin: int, end: int, state: State) -> bytes:
        """Return the bytes from ``begin`` to before ``end``; DataError: the object is of another version by now."""
        with self._answering():
            if (part := self._client.read_range(name, begin, end, state)) is None:
                raise changed(name)
            return part

    def write(self, name: str, content: bytes | Iterable[bytes]) -> None:
        """Send it, in parts where it is not all there yet; the object is there once the last one is."""
        with self._answering():
            if isinstance(content, bytes):
                self._client.put(name, content)
            else:
                self._client.write(name, content)

    def found(self, name: str) -> tuple[Version, bytes] | None:
        """Return a small object's version and bytes; None where there is none."""
        try:
            with self._answering():
                return self._client.load(name)
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> Version | None:
        """Write a small object that is not there yet; return its version, None where it is there already."""
        with self._answering():
            return self._client.put_if(name, content, "create")

    def replace(self, name: str, content: bytes, version: Version) -> Version | None:
        """Write a small object in the place of this version; return its own, None where it is another by now."""
        with self._answering():
            return self._client.put_if(name, content, version)

    def names(self) -> set[str]:
        """Return the names of the objects."""
        with self._answering():
            return self._client.names()

    def remove(self, names: Iterable[str]) -> None:
        """Remove them."""
        with self._answering(), suppress(FileNotFoundError):
            if given := list(names):
                self._client.remove(*given)

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

    def __init__(self, store: Store, name: str, state: State) -> None:
        self._store, self._name, self._state = store, name, state
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
        part = self._store.read_range(self._name, self._place, end, self._state)
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)


def changed(name: str) -> DataError:
    """Return the error of a source that is not what it was when the run began."""
    return DataError(f"{name}: was changed while it was read: start again, with a new output")
