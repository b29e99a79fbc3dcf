"""How jobs wait: for their turn, for what passes, and for an artifact that is not loaded."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable

from service.errors import ArtifactNotLoadedError, DeviceMemoryError, DrainingError, ShelfFullError, kind_of
from service.jobs.running.tools import Tools
from service.jobs.store.records import Job

#: Longest pause of ``Pauses``, in first ones.
_LONGEST_PAUSE = 60
#: A row that does not fit the device may fit once another process has left it. After so many tries it does not.
_DEVICE_MEMORY_TRIES = 4

#: For how much longer an artifact has to be absent before that is written down: what a kill may forget.
_STEP_S = 60.0


class Turns:
    """Round robin: the member that has waited longest is next.

    A newcomer comes behind all who have waited since before the last turn, and before the one who had it. A member that
    leaves and comes back, again and again, never passes one that stays.
    """

    def __init__(self) -> None:
        self._taken = 0
        self._last: dict[str, float] = {}

    def meet(self, members: Collection[str]) -> None:
        """Take in who is there: newcomers get their place, who has left is forgotten."""
        self._last = {member: self._place(member) for member in members}

    def next(self, members: Iterable[str]) -> str:
        """Return which of these members is next; among newcomers the first."""
        return min(members, key=self._place)

    def take(self, member: str) -> None:
        """Let a member have its turn."""
        self._taken += 1
        self._last[member] = self._taken

    def _place(self, member: str) -> float:
        return self._last.get(member, self._taken - 0.5)


class Pauses:
    """The pauses of one job between its tries: exponential back-off with jitter, up to ``longest_s`` seconds."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self.tried = 0

    def waits_out(self, error: Exception) -> bool:
        """Return whether what was refused is tried again: no room, or not ready or loaded; not the job's own fault."""
        if isinstance(error, DeviceMemoryError) and self.tried >= _DEVICE_MEMORY_TRIES:
            return False
        if isinstance(error, ArtifactNotLoadedError | ShelfFullError):
            return True
        return kind_of(error).status in (429, 503) and not isinstance(error, DrainingError)

    def next_s(self) -> float:
        """Return for how many seconds to wait now: longer each time."""
        pause_s = self._longest_s * min(1.0, 2.0 ** min(self.tried, 10) / _LONGEST_PAUSE)
        self.tried += 1
        return pause_s * random.uniform(0.5, 1.0)

    def over(self) -> None:
        """Begin anew: something went through."""
        self.tried = 0


class Absence:
    """Counts the seconds in ``Job.absent_s``, from one try without the artifact to the next."""

    def __init__(self, job: Job, tools: Tools) -> None:
        self._job, self._tools = job, tools
        #: ``time.monotonic`` of the last try without it.
        self._at: float | None = None
        self._written_s = job.absent_s

    def over(self) -> None:
        """Begin anew: it is loaded."""
        self._at, self._job.absent_s, self._written_s = None, 0.0, 0.0

    def pause(self) -> None:
        """Count no further until the next try without it: the job waits for something else."""
        self._at = None

    def goes_on(self) -> ArtifactNotLoadedError | None:
        """Note a try without it; return the error that the job fails with once that goes on for ``job_wait_s``."""
        self._count()
        self._at = time.monotonic()
        limit_s = self._tools.settings.job_wait_s
        if self._job.absent_s < limit_s:
            return None
        waited = f"artifact {self._job.about.artifact.name!r} was not loaded for job_wait_s ({limit_s:g} s)"
        return ArtifactNotLoadedError(f"{waited}: load it and upload the job again")

    async def write(self) -> None:
        """Bring it to disk, a minute or more at a time."""
        if self._written_s // _STEP_S != self._job.absent_s // _STEP_S:
            self._written_s = self._job.absent_s
            await self._tools.ledger.set_absent(self._job)

    async def stop(self) -> None:
        """Bring it to disk: the server stops, or lets go of the job."""
        if self._at is not None and not self._job.finished:
            self._count()
            await self._tools.ledger.set_absent(self._job)

    def _count(self) -> None:
        if self._at is not None:
            self._job.absent_s += time.monotonic() - self._at
