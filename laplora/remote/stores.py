"""A store: files by their path below an address, read as streams and written whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from laplora.errors import DownloadError
from laplora.remote.address import Address


class Store(Protocol):
    """The files below one address; it blocks, and no error of it repeats more of the address than may be shown."""

    @property
    def version(self) -> str | None:
        """The permanent name of the state that is read: the hub's commit. None where a store has no such name."""

    def read(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes; whoever reads them counts them.

        Raises:
            FileNotFoundError: there is no such file.
            DownloadError: the store refuses; StoreUnreachableError, which is one: it does not answer.
        """

    def state(self, name: str) -> tuple[int, str] | None:
        """Return a file's bytes and what changes with its content; None where there is none. Errors as ``read``."""

    def write(self, files: Mapping[str, Path], last: str) -> str | None:
        """Write files, so that ``last`` is there only once all others are; return the ``version`` that they are in.

        Raises:
            DownloadError: the store does not answer, or refuses.
        """


def open_store(address: Address) -> Store:
    """Return the store of an address. Only the hub is asked, for the commit that a revision stands for.

    Raises:
        ConfigError: the package of this kind of store is not installed, or the environment says something wrong of it.
        DownloadError: the hub has no such repository or revision, does not answer, or refuses.
    """
    if address.scheme == "hf":
        from laplora.remote.hub import HubStore

        return HubStore(address)
    from laplora.remote.objects import ObjectStore

    return ObjectStore(address)


def save(store: Store, name: str, target: Path, *, size_bytes: int) -> None:
    """Write a file of a store to the disk.

    Args:
        size_bytes: how many bytes it must have. One more ends it.

    Raises:
        FileNotFoundError, DownloadError: as ``Store.read``; DownloadError also for another number of bytes.
    """
    left = size_bytes
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        for part in store.read(name):
            left -= len(part)
            if left < 0:
                raise DownloadError(f"{name} has more than the {size_bytes} bytes that it should have")
            file.write(part)
    if left:
        raise DownloadError(f"{name} ended after {size_bytes - left} of {size_bytes} bytes")


def load(store: Store, name: str, *, most_bytes: int) -> bytes:
    """Return a small file's bytes; errors as ``save``."""
    content = bytearray()
    for part in store.read(name):
        content += part
        if len(content) > most_bytes:
            raise DownloadError(f"{name} has more than {most_bytes} bytes")
    return bytes(content)
