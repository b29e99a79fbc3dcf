"""What workers of Ray do in tests; a module of its own, which they can import."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from laplora.bulk.rows import Row
from laplora.bulk.workers import Job, Line
from laplora.errors import ModelError


@dataclass(frozen=True)
class Dies:
    """Does what ``job`` does, but at the row ``at`` its process is killed, until ``graves`` has so many files."""

    job: Job
    at: int
    graves: Path
    deaths: int = 1

    def start(self) -> Callable[[Sequence[Row]], Iterable[Line]]:
        """Start the job."""
        lines = self.job.start()

        def lines_or_death(window: Sequence[Row]) -> Iterator[Line]:
            for line in lines(window):
                graves = len(list(self.graves.iterdir()))
                if line[0] == self.at and graves < self.deaths:
                    (self.graves / str(graves)).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield line

        return lines_or_death


@dataclass(frozen=True)
class Echoes:
    """Answers each row with itself."""

    def start(self) -> Callable[[Sequence[Row]], Iterable[Line]]:
        """Return what does so."""
        return lambda window: [(number, line, False) for number, line in window]


@dataclass(frozen=True)
class Refuses:
    """A job that cannot start."""

    def start(self) -> Callable[[Sequence[Row]], Iterable[Line]]:
        """Raise what a worker raises on purpose."""
        raise ModelError("there is no such model")
