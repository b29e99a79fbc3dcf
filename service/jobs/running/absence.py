"""For how long a job's artifact has not been loaded while the server ran, across its starts."""

from __future__ import annotations

import time

from service.errors import ArtifactNotLoadedError
from service.jobs.running.tools import Tools
from service.jobs.store.records import Job

#: For how much longer an artifact has to be absent before that is written down: what a kill may forget.
_STEP_S = 60.0


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
