"""The large evaluations of one server: taken in, listed, cancelled, removed. Routes and application call it.

Belongs to the event loop. If the jobs folder is not available, the server serves without jobs and tries again. If
servers share the jobs, each renews its sign of life and claims its share of those that nobody runs.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress

from service.artifacts.host import ArtifactHost
from service.errors import JobNotFoundError
from service.jobs.intake.taking import Taking
from service.jobs.running.runner import Runner
from service.jobs.store.claims import ClaimLostError
from service.jobs.store.disk import STORAGE_ERRORS
from service.jobs.store.ledger import Ledger
from service.jobs.store.records import Job, ReadRow
from service.jobs.store.tasks import cancelled
from service.scoring.scorer import Scorer
from service.settings import Settings
from service.telemetry.logs import log_crash
from service.telemetry.metrics import Metrics


class JobBoard:
    """The jobs that one server knows of, and those that it runs."""

    def __init__(
        self, settings: Settings, scorer: Scorer, artifacts: ArtifactHost, metrics: Metrics, read_uploaded: ReadRow
    ) -> None:
        self._settings = settings
        self.ledger = Ledger(settings, metrics)
        self.quota = self.ledger.memory.quota
        self._runner = Runner(settings, scorer, artifacts, read_uploaded, self.ledger)
        self.taking = Taking(settings, self.ledger, read_uploaded, self._taken)
        self._keeper: asyncio.Task[None] | None = None
        self.draining = False

    # Life

    async def open(self) -> None:
        """Open the folder, go on where the last server stopped, and look after the folder from now on."""
        await self._open()
        self._keeper = asyncio.create_task(self._keep_up(), name="laplora-jobs-keeper")

    def drain(self) -> None:
        """Stop what runs after its last whole chunk, to go on at the next start."""
        self.draining = True
        self._runner.stop()

    async def close(self) -> None:
        """Drain, and let another process have the folder."""
        self.drain()
        await cancelled([self._keeper])
        await self._runner.wait_closed()
        await self.ledger.disk.close()
        self.taking.close()

    async def _open(self) -> None:
        await self.ledger.open()
        if self.ledger.disk.closed is None:
            await self._claim()

    async def _claim(self) -> None:
        with suppress(*STORAGE_ERRORS):
            await self.ledger.sharing.claim()
        self._runner.wake()

    async def _taken(self) -> None:
        if not self.draining:
            await self._claim()
        with suppress(*STORAGE_ERRORS):
            await self._remove_old()

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(self.ledger.disk.look_s)
            try:
                if self.ledger.disk.closed is not None:
                    await self._open()
                    continue
                await self.fresh()
                if not self.draining:
                    await self._claim()
                    await self._share()
                for job in [job for job in self.ledger.jobs.values() if job.cancelling]:
                    await self.cancel(job)
                await self._remove_old()
                self.ledger.disk.sweep_soon()
            except STORAGE_ERRORS:
                continue
            except Exception as error:
                log_crash("the jobs folder could not be kept up", error)

    async def fresh(self) -> None:
        """Learn what other servers did, where some share the jobs; call before jobs are looked at."""
        for job in await self.ledger.sharing.refresh():
            await self._runner.drop(job)
            await self.ledger.disk.forget_copy(job.id)

    async def _share(self) -> None:
        """Let other servers have the jobs that are more than this one's share."""
        mine = sum(job.mine and job.shared_out for job in self.ledger.jobs.values())
        for job in self._runner.idle(max(0, mine - self.ledger.sharing.share)):
            await self._runner.give_up(job)
            await self.ledger.sharing.release(job)

    async def _remove_old(self) -> None:
        settings = self._settings
        finished = [job for job in self.ledger.jobs.values() if job.finished]
        oldest_s = time.time() - settings.job_keep_s
        gone = [job for job in finished if job.finished_at is not None and job.finished_at < oldest_s]
        stays = [job for job in finished if job not in gone]
        bytes_of: Counter[str] = Counter()
        for job in stays:
            bytes_of[job.owner] += job.disk_bytes if job.keeps_rows else 0
        # Beyond a limit whoever has most of it loses the oldest, so that no caller can push out another's.
        while stays:
            if len(self.ledger.jobs) - len(gone) > settings.max_jobs:
                most = Counter(job.owner for job in stays)
            elif bytes_of.total() > settings.max_kept_job_bytes:
                most = bytes_of
            else:
                break
            oldest = min(stays, key=lambda job: (-most[job.owner], job.number))
            stays.remove(oldest)
            gone.append(oldest)
            bytes_of[oldest.owner] -= oldest.disk_bytes if oldest.keeps_rows else 0
        if gone:
            await self.ledger.remove(gone)

    # Jobs

    def jobs_of(self, owner: str | None) -> list[Job]:
        """Return one caller's jobs, or everybody's, the newest first. Call ``fresh`` before; so of ``job``.

        Raises:
            JobsUnavailableError: the folder is not open; so does ``job``.
        """
        return [job for job in reversed(self.ledger.open_jobs().values()) if owner in (None, job.owner)]

    def job(self, job_id: str, owner: str | None) -> Job:
        """Return a job.

        Raises:
            JobNotFoundError: none of this id, or not this owner's; None owns everybody's.
        """
        job = self.ledger.open_jobs().get(job_id)
        if job is None or owner not in (None, job.owner):
            raise JobNotFoundError("no job of this id: GET /evaluate/jobs lists yours")
        return job

    async def cancel(self, job: Job) -> None:
        """Stop a job for good: its rows leave the queue at once, its prompts the disk. One that has ended stays so.

        Raises:
            StorageFullError, JobsUnavailableError: that cannot be written down yet; nothing of the job runs here, and
                the server tries again.
        """
        job.cancelling = True
        await self._runner.drop(job)
        try:
            await self.ledger.end(job, "cancelled")
        except ClaimLostError:
            # Another server was first, with this or with another end.
            job.cancelling = False
            await self.fresh()
            return
        except STORAGE_ERRORS as error:
            await self.ledger.pause(job, error)
            raise
        job.cancelling = False
