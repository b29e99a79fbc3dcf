"""Uploads in a store that several servers reach: S3 or another that obstore knows, by a URL such as s3://BUCKET/FOLDER.

One object is one upload, written whole or not at all. Credentials and the endpoint come from the environment
(``laplora.remote.client``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from laplora.errors import install
from laplora.remote.client import StoreClient, StoreError
from service.errors import JobsUnavailableError, UploadChangedError
from service.telemetry.logs import logger

#: Seconds that one request may take.
_REQUEST_S = 120
_UNANSWERED = "the store of uploads does not answer, or refuses: try again later"


class RemoteUploads:
    """The objects below one URL; blocks, and is for any thread.

    Raises:
        JobsUnavailableError: obstore is not installed, or knows no such store; of the methods: the store does not
            answer, or refuses.
    """

    def __init__(self, url: str) -> None:
        try:
            self._client = StoreClient(url, transfer_s=_REQUEST_S)
        except ModuleNotFoundError:
            raise JobsUnavailableError(f"jobs_files_url needs obstore: {install('s3')}") from None
        except ValueError:
            raise JobsUnavailableError(
                "expected a jobs_files_url of a store, such as s3://BUCKET/FOLDER, and what the environment says of it"
            ) from None

    def put(self, path: Path, name: str) -> None:
        """Store a file's bytes as an object; it is there as a whole once this returns."""
        try:
            with _answering():
                self._client.put(name, path)
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
        with _answering():
            size, parts = self._client.read(name)
        if size != size_bytes:
            raise UploadChangedError("the upload was changed where the server keeps it: upload it again")
        with path.open("wb") as file, _answering():
            file.writelines(parts)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with _answering(), suppress(FileNotFoundError):
            self._client.remove(name)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        # It can hold what the store answered, and addresses: for the log.
        logger.warning("the store of uploads does not answer: %s", error.reason, extra={"event": "jobs_store_failed"})
        raise JobsUnavailableError(_UNANSWERED) from None
