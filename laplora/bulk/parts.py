"""The finished blocks of a run, in a folder of this machine, and what they are of: the same command goes on from them.

It has ``run.json``, which says what the blocks are of, and for each finished block ``000000.jsonl``: a line with its
record and then its lines. While a run works it also has ``.lock``. A file with another name is never touched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from laplora.errors import ConfigError, DataError
from laplora.files.atomic import write_whole

#: A row's line with its end, and whether it has no answer.
Line = tuple[bytes, bool]
Read = TypeVar("Read")
_RUN, _LOCK = "run.json", ".lock"
_BLOCK = re.compile(r"\d{6}\.jsonl")
#: The names of a run's files, and of partial files that a killed run left.
_OURS = re.compile(r"\d{6}\.jsonl|run\.json|\.(\d{6}\.jsonl|run\.json)\.[0-9a-f]{16}")


@validated(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Finished:
    """The record of a finished block: its number, how many rows it has, without an answer, and its lines' SHA-256."""

    number: int
    rows: int
    bad: int
    sha256: str


_RECORD = TypeAdapter(dict[str, Any])
_FINISHED = TypeAdapter(Finished)


def finished(number: int, lines: Iterable[Line]) -> bytes:
    """Return a block as it is kept: a line with its record, and its lines."""
    made = list(lines)
    content = b"".join(line for line, _ in made)
    record = Finished(number, len(made), sum(bad for _, bad in made), hashlib.sha256(content).hexdigest())
    return json.dumps(asdict(record)).encode() + b"\n" + content


@dataclass(frozen=True)
class Parts:
    """The folder of a run's finished blocks."""

    folder: Path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against other runs inside the block, by a lock that ends with this process however it ends.

        Raises:
            ConfigError: another run holds it; OSError: it cannot be made or locked.
        """
        lock = FileLock(self.folder / _LOCK)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"{self.folder}: another run works on it now: wait, or write elsewhere") from None
        try:
            yield
        finally:
            with suppress(OSError):
                (self.folder / _LOCK).unlink()  # while it is held: who had opened it meanwhile sees that it is gone
            lock.release()
            with suppress(OSError):  # blocks or other files are in it
                self.folder.rmdir()

    def begin(self, run: Mapping[str, Any]) -> dict[int, Finished]:
        """Return the blocks that are finished, none where the folder is new.

        Args:
            run: what the blocks are of, JSON values.

        Raises:
            ConfigError: those that are there are of something else; nothing was changed.
            DataError: one that is damaged.
        """
        names = {path.name for path in self.folder.iterdir()} - {_LOCK}
        if _RUN not in names:
            if any(not name.startswith(".") or not _OURS.fullmatch(name) for name in names):
                raise ConfigError(f"{self.folder}: holds other files than a run's: remove or rename it")
            write_whole(self.folder / _RUN, json.dumps(run, indent=2))
            return {}
        kept = self._read(_RECORD, _RUN, (self.folder / _RUN).read_bytes())
        if differing := [name for name in sorted({*kept, *run}) if kept.get(name) != run.get(name)]:
            differences = "; ".join(f"{name} was {kept.get(name)}, is {run.get(name)}" for name in differing)
            raise ConfigError(f"{self.folder}: its blocks are of another run ({differences}): remove it to begin anew")
        digests = {}
        for name in filter(_BLOCK.fullmatch, names):
            with (self.folder / name).open("rb") as file:
                one = digests[int(name[:6])] = self._read(_FINISHED, name, file.readline())
            if one.number != int(name[:6]):
                raise self._damaged(name)
        return digests

    def keep(self, block: bytes) -> Finished:
        """Write a block, of ``finished``, in one step, and return its record."""
        record = _FINISHED.validate_json(block[: block.index(b"\n")])
        write_whole(self.folder / f"{record.number:06d}.jsonl", block)
        return record

    def lines(self, blocks: Iterable[Finished]) -> Iterator[bytes]:
        """Yield the lines of blocks, block after block; DataError: a block is not what was written."""
        for block in blocks:
            path, digest = self.folder / f"{block.number:06d}.jsonl", hashlib.sha256()
            with path.open("rb") as file:
                file.readline()
                for line in file:
                    digest.update(line)
                    yield line
            if digest.hexdigest() != block.sha256:
                raise DataError(f"{path}: was changed: remove it, and run again")

    def remove(self) -> None:
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()

    def _read(self, kind: TypeAdapter[Read], name: str, text: bytes) -> Read:
        try:
            return kind.validate_json(text)
        except ValidationError:
            raise self._damaged(name) from None

    def _damaged(self, name: str) -> DataError:
        return DataError(f"{self.folder / name}: is damaged: remove the folder to begin anew")
