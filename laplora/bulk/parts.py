"""The finished blocks of a run, beside its output, and what they are of: the same command goes on from them.

``OUT.parts`` has ``run.json``, which says what the blocks are of, and for each finished block ``000000.jsonl`` with its
lines and ``000000.json``, written after it, with their digest. While a run works it also has ``.lock``. A file with
another name is never touched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from laplora.bulk.folders import Folder, folder_of
from laplora.bulk.locks import LOCK, held
from laplora.errors import ConfigError, DataError

RUN = "run.json"
#: Of a block, also one that was being written when its worker was killed.
_OURS = re.compile(r"\d{6}\.(jsonl?|tries)|\.(\d{6}\.(jsonl?|tries)|run\.json)\.[0-9a-f]{16}")
#: Rows without an answer whose numbers are told.
TOLD_ROWS = 100


@dataclass(frozen=True)
class Finished:
    """A finished block.

    Attributes:
        rows: how many; sha256: of its lines.
        bad: rows without an answer; first_bad: their numbers, ``TOLD_ROWS`` at most.
    """

    number: int
    rows: int
    sha256: str
    bad: int = 0
    first_bad: list[int] = field(default_factory=list)


class Parts:
    """The folder of a run's finished blocks; ``place`` is its path or URL."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._folder: Folder = folder_of(place)

    def held(self, progress: Callable[[str], None] | None = None) -> AbstractContextManager[Callable[[], None]]:
        """Hold the folder against other runs: ``laplora.bulk.locks.held``."""
        return held(self._folder, self.place, progress)

    def begin(self, run: Mapping[str, Any]) -> dict[int, Finished]:
        """Return the blocks that are finished, none where the folder is new.

        Args:
            run: what the blocks are of, JSON values.

        Raises:
            ConfigError: those that are there are of something else; nothing was changed.
        """
        names = self._folder.names() - {LOCK}
        if RUN not in names:
            if any(not name.startswith(".") or not _OURS.fullmatch(name) for name in names):
                raise ConfigError(f"{self.place}: holds other files than a run's: remove or rename it")
            self._folder.write(RUN, json.dumps(run, indent=2).encode())
            return {}
        kept = self._record(RUN)
        if differing := [name for name in sorted({*kept, *run}) if kept.get(name) != run.get(name)]:
            told = "; ".join(f"{name} was {_told(kept.get(name))}, is {_told(run.get(name))}" for name in differing)
            raise ConfigError(f"{self.place}: its blocks are of another run ({told}): remove it to begin anew")
        self._folder.remove(name for name in names if name.endswith(".tries") and _OURS.fullmatch(name))
        found = (self._record(name) for name in sorted(names) if re.fullmatch(r"\d{6}\.json", name))
        return {one["number"]: Finished(**one) for one in found}

    def _record(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._folder.read(name))
        except ValueError:
            raise DataError(f"{self.place}/{name}: is damaged: remove the folder to begin anew") from None
        return found

    def begun(self, number: int) -> int:
        """Note that a block is begun; return how often it was before, since the run began or went on."""
        name = f"{number:06d}.tries"
        try:
            before = int(self._folder.read(name))
        except FileNotFoundError:
            before = 0
        self._folder.write(name, b"%d" % (before + 1))
        return before

    def write(self, number: int, lines: Iterable[tuple[int, bytes, bool]]) -> Finished:
        """Write a block's lines as they come, then its record, and return that.

        Args:
            lines: number of the row, the line with its end, and whether it has no answer.
        """
        digest, rows, bad = hashlib.sha256(), 0, 0
        first_bad: list[int] = []

        def content() -> Iterator[bytes]:
            nonlocal rows, bad
            for row, line, is_bad in lines:
                digest.update(line)
                rows += 1
                bad += is_bad
                if is_bad and len(first_bad) < TOLD_ROWS:
                    first_bad.append(row)
                yield line

        self._folder.write(f"{number:06d}.jsonl", content())
        finished = Finished(number, rows, digest.hexdigest(), bad, first_bad)
        self._folder.write(f"{number:06d}.json", json.dumps(asdict(finished)).encode())
        return finished

    def lines(self, finished: Iterable[Finished]) -> Iterator[bytes]:
        """Yield the lines of blocks, block after block.

        Raises:
            DataError: a block that is not what was written.
        """
        for block in finished:
            name = f"{block.number:06d}.jsonl"
            try:
                version = self._folder.version(name)
                file = self._folder.open(name, version)
            except FileNotFoundError:
                raise DataError(
                    f"{self.place}/{name}: is not there: workers on other machines need a folder that all of them "
                    "share, or an s3:// URL"
                ) from None
            digest = hashlib.sha256()
            with file:
                for line in file:
                    digest.update(line)
                    yield line
            if digest.hexdigest() != block.sha256:
                raise DataError(f"{self.place}/{name}: was changed: remove it and its .json, and run again")

    def remove(self) -> None:
        """Remove what a run has written, and the folder if it is empty then."""
        ours = sorted(name for name in self._folder.names() if _OURS.fullmatch(name))
        self._folder.remove([*ours, RUN])


def _told(value: Any) -> str:
    text = "not said" if value is None else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
