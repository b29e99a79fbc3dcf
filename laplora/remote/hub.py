"""The Hugging Face hub, by huggingface_hub: a revision is resolved to its commit once, and all is read from that.

The token comes from ``HF_TOKEN`` or ``hf auth login``, the hub from ``HF_ENDPOINT``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from laplora.errors import DownloadError, StoreUnreachableError
from laplora.remote.address import Address

_PART_BYTES = 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a commit's whole hash, and so the same for good."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def is_repository(model: str) -> bool:
    """Return whether a text has the form of a hub id, ``OWNER/NAME`` or of an old model ``NAME`` alone."""
    return _REPOSITORY.fullmatch(model) is not None


class HubStore:
    """The files below one address at one commit.

    Args:
        ask: whether the hub is asked for the commit of a revision that is one's whole hash; without, what is in
            huggingface_hub's cache needs no hub.

    Raises:
        DownloadError: no such repository or revision, or the hub does not answer or refuses.
    """

    def __init__(self, address: Address, *, ask: bool = True) -> None:
        from huggingface_hub import HfApi

        self._address = address
        self.version: str | None = address.revision
        if not ask and is_commit(self.version):
            return
        with self._answering("the repository"):
            info = HfApi().model_info(address.repository, revision=address.revision)
        if not info.sha:
            raise DownloadError(f"{address}: the hub names no commit of it")
        self.version = info.sha

    def read(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes, at the commit."""
        from huggingface_hub import HfFileSystem

        files = HfFileSystem(skip_instance_cache=True)
        where = f"{self._address.repository}@{self.version}/{self._path(name)}"
        with self._answering(name), files.open(where, "rb", block_size=0) as file:
            while part := file.read(_PART_BYTES):
                yield part

    def state(self, name: str) -> tuple[int, str] | None:
        """Return a file's bytes and the hash by which git knows it."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        with self._answering(name):
            infos = HfApi().get_paths_info(self._address.repository, [self._path(name)], revision=self.version)
        return next(((entry.size, entry.blob_id) for entry in infos if isinstance(entry, RepoFile)), None)

    def sizes(self, patterns: Sequence[str]) -> dict[str, int]:
        """Return the bytes of the files, by path at the commit, that patterns match as those of ``snapshot`` do."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        with self._answering("a list of its files"):
            listed = HfApi().list_repo_tree(
                self._address.repository, self._address.folder or None, recursive=True, revision=self.version
            )
            files = {entry.path: entry.size for entry in listed if isinstance(entry, RepoFile)}
        wanted = [self._path(pattern) for pattern in patterns]
        return {name: size for name, size in files.items() if any(fnmatchcase(name, one) for one in wanted)}

    def snapshot(self, patterns: Sequence[str]) -> Path:
        """Return the folder in huggingface_hub's own cache with the files, at the commit, that patterns match."""
        from huggingface_hub import snapshot_download

        wanted = [self._path(pattern) for pattern in patterns]
        try:
            with self._answering("its files"):
                whole = snapshot_download(self._address.repository, revision=self.version, allow_patterns=wanted)
        except FileNotFoundError:  # what it calls files that are not in the cache while the hub is away
            raise StoreUnreachableError(
                f"{self._address}: the hub does not answer, and not all is in its cache"
            ) from None
        return Path(whole) / self._address.folder

    def write(self, files: Mapping[str, Path], last: str) -> str:
        """Write files in one commit, and return its hash."""
        from huggingface_hub import CommitOperationAdd, HfApi

        operations = [CommitOperationAdd(self._path(name), str(path)) for name, path in files.items()]
        with self._answering("the files"):
            done = HfApi().create_commit(
                self._address.repository,
                operations,
                commit_message=f"Add {self._path(last)}",
                revision=self._address.revision,
            )
        return done.oid

    def _path(self, name: str) -> str:
        return f"{self._address.folder}/{name}" if self._address.folder else name

    @contextmanager
    def _answering(self, name: str) -> Iterator[None]:
        """Turn the hub's errors, whose messages can hold signed addresses, into ours."""
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            yield
        except RepositoryNotFoundError:  # of which a gated one is a kind
            raise DownloadError(
                f"{self._address}: the hub has no such repository, or it is private and HF_TOKEN may not read it"
            ) from None
        except RevisionNotFoundError:
            raise DownloadError(f"{self._address}: the repository has no such revision") from None
        except (EntryNotFoundError, FileNotFoundError):
            raise FileNotFoundError(f"{self._address} has no {name}") from None
        except Exception as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            is_away = status is None or status >= 500 or status in (408, 429)
            kind = StoreUnreachableError if is_away else DownloadError
            reason = type(error).__name__ if status is None else f"status {status}"
            raise kind(f"{self._address}: the hub does not give or take {name} ({reason})") from None
