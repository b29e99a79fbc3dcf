"""Uploads in a store that several servers reach: S3 or another that obstore knows, by a URL such as s3://BUCKET/FOLDER.

One object is one upload, written whole or not at all. Credentials and the endpoint come from the environment, as
obstore reads them: ``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, and ``AWS_ALLOW_HTTP`` for an endpoint without TLS.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from laplora.errors import install
from service.errors import JobsUnavailableError, UploadChangedError
from service.telemetry.logs import logger

_CONNECT_S, _REQUEST_S, _RETRY_S = 10, 120, 60
_TRIES = 3
_PART_BYTES = 8 * 2**20
_UNANSWERED = "the store of uploads does not answer, or refuses: try again later"


class RemoteStore:
    """The objects below one URL; blocks, and is for any thread.

    Raises:
        JobsUnavailableError: obstore is not installed, or knows no such store; of the methods: the store does not
            answer, or refuses.
    """

    def __init__(self, url: str) -> None:
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ModuleNotFoundError:
            raise JobsUnavailableError(f"jobs_files_url needs obstore: {install('s3')}") from None
        try:
            # obstore reads all the other variables itself.
            plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
            self._store = from_url(
                url,
                client_options={
                    "allow_http": plain,
                    "connect_timeout": timedelta(seconds=_CONNECT_S),
                    "timeout": timedelta(seconds=_REQUEST_S),
                },
                retry_config={"max_retries": _TRIES, "retry_timeout": timedelta(seconds=_RETRY_S)},
            )
        except (BaseError, ValueError):
            raise JobsUnavailableError(
                "expected a jobs_files_url of a store, such as s3://BUCKET/FOLDER, and what the environment says of it"
            ) from None

    def put(self, path: Path, name: str) -> None:
        """Store a file's bytes as an object; it is there as a whole once this returns."""
        import obstore

        try:
            with _answering():
                obstore.put(self._store, name, path, chunk_size=_PART_BYTES, max_concurrency=2)
        except FileNotFoundError:
            # There is no such bucket, or not yet.
            raise JobsUnavailableError(_UNANSWERED) from None

    def get(self, name: str, path: Path, *, size_bytes: int) -> None:
        """Write an object's bytes into a file.

        Args:
            size_bytes: how many there have to be.

        Raises:
            FileNotFoundError: there is none of this name.
            UploadChangedError: it has another size; nothing was written.
        """
        import obstore

        with _answering():
            answer = obstore.get(self._store, name)
            if answer.meta["size"] != size_bytes:
                raise UploadChangedError("the upload was changed where the server keeps it: upload it again")
            parts = iter(answer.stream(min_chunk_size=_PART_BYTES))
        with path.open("wb") as file:
            while True:
                with _answering():
                    part = next(parts, None)
                if part is None:
                    return
                file.write(part)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        import obstore

        with _answering():
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError:
                return


@contextmanager
def _answering() -> Iterator[None]:
    from obstore.exceptions import BaseError, NotFoundError

    try:
        yield
    except (NotFoundError, FileNotFoundError):
        raise FileNotFoundError("no such object") from None
    except BaseError as error:
        # Its message can hold what the store answered, and addresses: for the log, without what follows the first line.
        reason = str(error).partition("\n")[0][:200]
        logger.warning("the store of uploads does not answer: %s", reason, extra={"event": "jobs_store_failed"})
        raise JobsUnavailableError(_UNANSWERED) from None
