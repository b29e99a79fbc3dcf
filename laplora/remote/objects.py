"""Object stores and web servers: S3, Google Cloud Storage and plain HTTPS (``laplora.remote.client``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from laplora.errors import ConfigError, DownloadError, StoreUnreachableError, needs
from laplora.remote.address import Address
from laplora.remote.client import StoreClient, StoreError

_TRIES = 3
_PART_BYTES = 8 * 2**20


class ObjectStore:
    """The objects below one address.

    Raises:
        ConfigError: obstore is not installed, or the environment says something that it cannot use.
    """

    version: str | None = None

    def __init__(self, address: Address) -> None:
        self._address, self._is_web = address, address.scheme in ("http", "https")
        url = f"{address.url}?{address.query}" if address.query else address.url
        try:
            self._client = StoreClient(url, web=self._is_web, tries=_TRIES, part_bytes=_PART_BYTES)
        except ModuleNotFoundError as error:
            raise needs("remote", error) from None
        except ValueError:
            raise ConfigError(f"{address}: the environment does not say how to reach it, or says it wrongly") from None

    def read(self, name: str) -> Iterator[bytes]:
        with self._answering(name):
            _, parts = self._client.read(name)
        while True:
            with self._answering(name):
                part = next(parts, None)
            if part is None:
                return
            yield part

    def state(self, name: str) -> tuple[int, str] | None:
        """Return an object's bytes and its entity tag, or where it has none the time of its last change."""
        try:
            with self._answering(name):
                state_of_object = self._client.state(name)
        except FileNotFoundError:
            return None
        return state_of_object.size, state_of_object.etag or state_of_object.changed

    def write(self, files: Mapping[str, Path], last: str) -> None:
        """Write objects, ``last`` at the end; one that is there already goes first, so that no reader mixes the two."""
        if self._is_web:
            raise ConfigError("https:// is only read: copy the folder to its server, or give hf://, s3:// or gs://")
        with suppress(FileNotFoundError), self._answering(last):
            self._client.remove(last)
        for name in [*(name for name in files if name != last), last]:
            try:
                with self._answering(name):
                    self._client.put(name, files[name])
            except FileNotFoundError:
                raise DownloadError(f"{self._address}: there is no such bucket") from None

    @contextmanager
    def _answering(self, name: str) -> Iterator[None]:
        """Turn the client's errors into ours."""
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(f"{self._address} has no {name}") from None
        except StoreError as error:
            if error.kind == "refused":
                raise DownloadError(
                    f"{self._address}: the store refuses {name}: see that the environment has keys that may, and that "
                    "the address still holds; of a missing object a store says so too, to keys that may not list"
                ) from None
            kind = StoreUnreachableError if error.kind == "unreachable" else DownloadError
            raise kind(f"{self._address}: the store does not give or take {name} ({error.name})") from None
