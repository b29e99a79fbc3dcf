"""The jobs of one server, in memory and on disk. The disk is written first, by one thread; memory follows.

How a job comes, goes on and ends. Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from service.errors import error_detail
from service.jobs.store.claims import ClaimLostError
from service.jobs.store.disk import STORAGE_ERRORS, Disk
from service.jobs.store.job_tables import answer_bytes
from service.jobs.store.memory import JobMemory
from service.jobs.store.records import Job, JobResult, RowRange, ScoredRow, StoredStatus, Sums
from service.jobs.store.sharing import Sharing
from service.settings import Settings
from service.telemetry.logs import log_crash, logger
from service.telemetry.metrics import Metrics


class Ledger:
    """Every job that the server knows of.

    Attributes:
        disk: where they are; memory: what the server knows of them; sharing: whose they are.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self.disk = Disk(settings)
        self.memory = JobMemory(settings, metrics, self.disk)
        self.sharing = Sharing(settings, self.disk, self.memory)
        self._changing = asyncio.Lock()

    @property
    def jobs(self) -> dict[str, Job]:
        """Every job by its id, in the order of their uploads."""
        return self.memory.by_id

    def open_jobs(self) -> dict[str, Job]:
        """Return ``jobs``; JobsUnavailableError where they cannot be had."""
        if self.disk.closed is not None:
            raise self.disk.closed
        return self.jobs

    async def open(self) -> None:
        """Open folder and database and take the jobs in; where that fails, the disk and the log say why."""
        jobs = await self.disk.open()
        if jobs is not None:
            self.memory.take_all(jobs)
            self.disk.sweep_soon()

    # Jobs come and go

    async def add(self, job: Job) -> None:
        """Keep a new job, whose whole upload is on disk.

        If this fails, the database may have the job or not: the sweep removes an upload without a job.
        """
        await self.disk.in_database(self.disk.tables.discards.announce, job.id)
        try:
            await self.disk.in_files(self.disk.folder.keep, job.id)
            job.keeps_rows = job.about.keep_rows
            job.number = await self.disk.in_database(self.disk.tables.add, job)
        except BaseException:
            if self.disk.shared:
                await self.disk.forget_copy(job.id)
                self.disk.sweep_soon()
            else:
                await self.disk.discard([job.id])
            raise
        self.memory.by_id[job.id] = job
        logger.info("job queued", extra={"event": "job_queued", "job": job.id, "rows": job.about.rows})
        self.memory.count()

    async def remove(self, jobs: Sequence[Job]) -> None:
        """Forget finished jobs, with their rows and uploads; errors as of ``end``."""
        async with self.disk.in_time(), self._changing:
            jobs = [job for job in jobs if job.id in self.memory.by_id]
            if not jobs:
                return
            await self._make_room(jobs)
            await self.disk.in_database(self.disk.tables.remove, [job.number for job in jobs])
            for job in jobs:
                self.memory.forget(job)
        await self.disk.discard([job.id for job in jobs])

    async def _make_room(self, jobs: Sequence[Job]) -> None:
        """Remove uploads before it is written down that nobody needs them: a disk without room could not take that.

        If other servers share the jobs, one may be done by now, and then its rows stay.
        """
        if not self.disk.shared and self.disk.folder.remote is None:
            for job in jobs:
                await self.disk.in_files(self.disk.folder.discard, job.id)

    async def end(
        self,
        job: Job,
        status: StoredStatus,
        *,
        error: dict[str, Any] | None = None,
        result: str | None = None,
        bad: Mapping[int, str] | None = None,
    ) -> None:
        """Let a job end of which nothing runs here, and remove its prompts unless they are kept.

        One that has ended stays as it is.

        Args:
            bad: codes by number, of rows that are not over.

        Raises:
            StorageFullError, JobsUnavailableError: that cannot be written down yet.
            ClaimLostError: it is another server's by now; any server may cancel it.
        """
        async with self.disk.in_time(), self._changing:
            if job.finished:
                return
            cancelled = status == "cancelled"
            if cancelled:
                await self._make_room([job])
            finished_at, bad = time.time(), bad or {}
            fence = None if cancelled else job.fence
            more: dict[str, Any] = {"error": error, "result": result, "bad": bad}
            end = partial(self.disk.tables.end, job.number, status, finished_at=finished_at, fence=fence, **more)
            await self.disk.in_database(end)
            job.fence += 1
            job.keeps_rows = job.keeps_rows and not cancelled
            job.bad_counts = job.bad_counts + Counter(bad.values())
            self._metrics.count_job_rows(0, bad=len(bad))
            code = {} if error is None else {"code": error["code"]}
            fields = {"job": job.id, "status": status, "rows_done": job.rows_done, "rows_bad": job.rows_bad, **code}
            logger.info("job ended", extra={"event": "job_ended", **fields})
            self._over(job, status, finished_at, error)
        if job.keeps_rows:
            await self.disk.forget_copy(job.id)
            self.disk.sweep_soon()
        else:
            await self.disk.discard([job.id])

    def lose(self, job: Job, error: Exception) -> None:
        """Let a job fail whose end could not be written down: it runs no more until the next start."""
        log_crash("the end of a job could not be kept", error)
        job.lost = True
        self._over(job, "failed", time.time(), error_detail(error))

    def _over(self, job: Job, status: StoredStatus, finished_at: float, error: dict[str, Any] | None) -> None:
        job.status, job.finished_at, job.error, job.paused = status, finished_at, error, None
        job.server, job.mine = None, False
        self.memory.quota.release(job.id)
        self.memory.count()

    # A job goes on

    async def runs(self, job: Job) -> None:
        """Note that a queued job, or one that was left, has begun to run.

        Another paused one stays so until something of it went through.
        """
        if not job.pace:
            job.pace.append((time.monotonic(), job.rows_done))
        if job.status == "queued" or job.left_at is not None:
            job.status, job.started_at = "running", job.started_at or time.time()
            job.paused = job.left_at = None
            self.sharing.runs(job)
            await self._tell_others(job)

    async def pause(self, job: Job, error: Exception) -> None:
        """Note that a job waits for what it was refused for."""
        detail = error_detail(error)
        job.pace.clear()
        new = job.paused is None or job.paused["code"] != detail["code"]
        job.status, job.paused = "paused", {"code": detail["code"], "message": detail["message"]}
        if new:
            logger.warning("job paused", extra={"event": "job_paused", "job": job.id, "code": detail["code"]})
            await self._tell_others(job)

    async def stopped(self, job: Job) -> None:
        """Note that nothing of a job runs; if it has not ended it waits for its next turn."""
        if job.mine and not job.finished and not job.cancelling:
            job.status, job.paused = "queued", None
            await self._tell_others(job)

    async def _tell_others(self, job: Job) -> None:
        """Let other servers show what a job of this one waits for."""
        self.memory.count()
        if self.disk.shared and job.mine:
            with suppress(*STORAGE_ERRORS, ClaimLostError):
                set_paused = partial(self.disk.tables.set_paused, job.number, job.paused, fence=job.fence)
                await self.disk.in_database(set_paused)

    async def add_rows(
        self, job: Job, rows: RowRange, scored: Sequence[ScoredRow], bad: Mapping[int, str], *, sums: Sums, end: int
    ) -> None:
        """Keep the answers of a job's next rows.

        Args:
            sums: of all rows, with these; end: where in the upload, in bytes, the row after them begins.

        Raises:
            ClaimLostError: it is another server's by now, or has ended.
        """
        started_at = job.started_at or time.time()
        new: dict[str, Any] = {"scored": scored, "bad": bad, "sums": sums}
        # The claim that the rows were scored under: by the time of the write there may be another.
        write = partial(self.disk.tables.add_rows, job.number, rows, fence=job.fence, **new)
        await self.disk.in_database(partial(write, input_offset=end, started_at=started_at))
        job.rows_done, job.bad_counts = rows[1], job.bad_counts + Counter(bad.values())
        job.pace.append((time.monotonic(), rows[1]))
        job.answer_bytes += answer_bytes(scored)
        if job.id in self.jobs and not job.finished:
            self.memory.hold(job)
        job.sums, job.input_offset, job.started_at = sums, end, started_at
        job.status, job.paused = "running", None
        self._metrics.count_job_rows(len(scored), bad=len(bad))
        self.memory.count()

    async def bad_rows(self, job: Job) -> list[tuple[int, str]]:
        """Return the numbers, from 0, of a job's rows that could not be scored, and the codes of why."""
        return await self.disk.in_database(self.disk.tables.reads.bad_rows, job.number) if job.rows_bad else []

    async def result(self, job: Job) -> JobResult | None:
        """Return a job's result; None before it is done."""
        if job.status != "done":
            return None
        result = await self.disk.in_database(self.disk.tables.reads.result, job.number)
        return None if result is None else JobResult.model_validate_json(result)

    async def set_begun(self, job: Job, under_way: Mapping[RowRange, int]) -> None:
        """Keep which rows are under way, and their lone tries, beside what earlier processes left begun."""
        begun = {rows: tries for rows, tries in {**job.begun, **under_way}.items() if rows[1] > job.rows_done}
        await self.disk.in_database(partial(self.disk.tables.set_begun, job.number, begun, fence=job.fence))

    async def set_absent(self, job: Job) -> None:
        """Keep for how long a job's artifact has not been loaded; a disk without room forgets it."""
        with suppress(*STORAGE_ERRORS):
            await self.disk.in_database(partial(self.disk.tables.set_absent, job.number, job.absent_s, fence=job.fence))
