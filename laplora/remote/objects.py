"""Object stores and web servers: S3, Google Cloud Storage and plain HTTPS, by obstore.

Keys and endpoints come from the environment, as obstore reads them: ``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
``GOOGLE_SERVICE_ACCOUNT`` and the like. A stream that breaks off goes on by itself where the server can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from laplora.errors import ConfigError, DownloadError, needs
from laplora.remote.address import Address

#: Seconds to connect, between two pieces of an answer, and of one transfer.
_CONNECT_S, _SILENCE_S, _TRANSFER_S = 10, 60, 86_400
_TRIES, _RETRY_S = 3, 60
_PART_BYTES = 8 * 2**20
_ALLOW_HTTP = ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")


class ObjectStore:
    """The objects below one address.

    Raises:
        ConfigError: obstore is not installed, or the environment says something that it cannot use.
    """

    version: str | None = None

    def __init__(self, address: Address) -> None:
        try:
            from obstore.exceptions import BaseError
            from obstore.store import HTTPStore, from_url
        except ModuleNotFoundError as error:
            raise needs("remote", error) from None
        self._address = address
        web = address.scheme in ("http", "https")
        plain = any(os.environ.get(name, "").lower() in ("1", "true") for name in _ALLOW_HTTP)
        options: Any = {
            "client_options": {
                "allow_http": address.scheme == "http" if web else plain,
                "connect_timeout": timedelta(seconds=_CONNECT_S),
                "read_timeout": timedelta(seconds=_SILENCE_S),
                "timeout": timedelta(seconds=_TRANSFER_S),
            },
            "retry_config": {"max_retries": _TRIES, "retry_timeout": timedelta(seconds=_RETRY_S)},
        }
        query = f"?{address.query}" if address.query else ""
        # Of an address on https:// obstore's own choice is by its host, which may be that of a bucket.
        opened: Any = HTTPStore.from_url if web else from_url
        try:
            self._store: Any = opened(address.url + query, **options)
        except (BaseError, ValueError):
            raise ConfigError(f"{address}: the environment does not say how to reach it, or says it wrongly") from None

    def read(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes."""
        import obstore

        with self._answering(name):
            parts = iter(obstore.get(self._store, name).stream(min_chunk_size=_PART_BYTES))
        while True:
            with self._answering(name):
                part = next(parts, None)
            if part is None:
                return
            yield bytes(part)

    def state(self, name: str) -> tuple[int, str] | None:
        """Return an object's bytes and its entity tag, or where it has none the time of its last change."""
        import obstore

        try:
            with self._answering(name):
                found = obstore.head(self._store, name)
        except FileNotFoundError:
            return None
        return found["size"], found["e_tag"] or found["last_modified"].isoformat()

    def write(self, files: Mapping[str, Path], last: str) -> None:
        """Write objects, ``last`` at the end; one that is there already goes first, so that no reader mixes the two."""
        import obstore

        if self._address.scheme in ("http", "https"):
            raise ConfigError("https:// is only read: copy the folder to its server, or give hf://, s3:// or gs://")
        try:
            with self._answering(last):
                obstore.delete(self._store, last)
        except FileNotFoundError:
            pass
        for name in [*(name for name in files if name != last), last]:
            try:
                with self._answering(name):
                    obstore.put(self._store, name, files[name], chunk_size=_PART_BYTES, max_concurrency=2)
            except FileNotFoundError:
                raise DownloadError(f"{self._address}: there is no such bucket") from None

    @contextmanager
    def _answering(self, name: str) -> Iterator[None]:
        """Turn obstore's errors, whose messages hold the whole address and what the store answered, into ours."""
        from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (NotFoundError, FileNotFoundError):
            raise FileNotFoundError(f"{self._address} has no {name}") from None
        except (PermissionDeniedError, UnauthenticatedError):
            raise DownloadError(
                f"{self._address}: the store refuses {name}: see that the environment has keys that may, and that the "
                "address still holds; of a missing object a store says so too, to keys that may not list"
            ) from None
        except (BaseError, OSError) as error:
            raise DownloadError(
                f"{self._address}: the store does not give or take {name} ({type(error).__name__})"
            ) from None
