"""How a job ends on this server: it is done, fails, or is left to another server that can run it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from service.errors import ArtifactChangedError, ArtifactNotLoadedError, UploadChangedError, error_detail, kind_of
from service.jobs.running.tools import Tools
from service.jobs.running.waiting import Pauses
from service.jobs.store.claims import ClaimLostError
from service.jobs.store.disk import STORAGE_ERRORS
from service.jobs.store.records import About, Job, StoredStatus
from service.jobs.store.tasks import whole
from service.telemetry.logs import log_crash


class UploadGoneError(UploadChangedError):
    """This server finds nothing where a job's upload should be."""


class Ending:
    """The end of a job, once it is known.

    Attributes:
        outcome: its status, and what is kept of it.
        leaving: why this server cannot run it, while another may.
    """

    def __init__(self, job: Job, tools: Tools) -> None:
        self._job, self._tools = job, tools
        self.outcome: tuple[StoredStatus, dict[str, Any]] | None = None
        self.leaving: Exception | None = None

    @property
    def decided(self) -> bool:
        """Whether nothing more of the job is to begin here."""
        return self.outcome is not None or self.leaving is not None

    def cannot(self, error: Exception) -> None:
        """Let another server have the job where one may do better; else it fails."""
        kinds = (ArtifactChangedError, ArtifactNotLoadedError, UploadGoneError, *STORAGE_ERRORS)
        if self._tools.ledger.disk.shared and isinstance(error, kinds):
            self.leaving = error
        else:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        if kind_of(error).status == 500:
            log_crash("a job failed", error)
        self.outcome = "failed", {"error": error_detail(error)}

    async def carry_out(self, bad: Callable[[], Mapping[int, str]]) -> bool:
        """Bring the end to disk, for as long as that takes; return false where it is another server's job by now.

        Args:
            bad: returns the codes by number of rows that could not be scored and are not on disk.
        """
        job, ledger, pauses = self._job, self._tools.ledger, Pauses(self._tools.settings.job_pause_s)
        while True:
            try:
                if self.leaving is not None and self.outcome is None and await self._left(self.leaving):
                    return True
                if self.outcome is None:
                    self.outcome = "done", {"result": await self._tools.measuring.result(job)}
                status, more = self.outcome
                await whole(ledger.end(job, status, bad=bad(), **more))
                return True
            except ClaimLostError:
                return False
            except Exception as error:
                if pauses.waits_out(error):
                    await ledger.pause(job, error)
                    await asyncio.sleep(pauses.next_s())
                elif self.outcome is not None and self.outcome[0] == "failed":
                    ledger.lose(job, error)
                    return True
                else:
                    self.fail(error)

    async def _left(self, error: Exception) -> bool:
        """Return whether the job is left to another server: not where none came for ``job_wait_s``, and it fails."""
        job, sharing, limit_s = self._job, self._tools.ledger.sharing, self._tools.settings.job_wait_s
        needed = _needed(error, job.about)
        if await sharing.left_s(job) >= limit_s:
            self.fail(type(error)(f"for job_wait_s ({limit_s:g} s) there was no {needed}: upload the job again"))
            return False
        await whole(sharing.leave(job, error, f"waits for a {needed}"))
        return True


def _needed(error: Exception, about: About) -> str:
    """Return what a server has to be that runs a job which this one cannot."""
    if isinstance(error, UploadGoneError):
        return "server that has its upload"
    if isinstance(error, ArtifactChangedError | ArtifactNotLoadedError):
        return f"server that has loaded artifact {about.artifact.name!r} of digest {about.artifact.digest}"
    return f"server that can read its upload ({error})"
