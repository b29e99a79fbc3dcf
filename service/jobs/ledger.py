"""The jobs of one folder, in memory and on disk. The disk is written first, by one thread; memory follows.

Belongs to the event loop. Where the folder cannot be had, ``closed`` says why, and ``open`` can be called again.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from laplora.errors import LaploraError
from service.errors import JobsUnavailableError, StorageFullError, error_content
from service.jobs.chunks import Chunk
from service.jobs.folder import JobsFolder, StrangersError, default_jobs_dir
from service.jobs.quota import Quota
from service.jobs.records import STATUSES, Job, Rows, ScoredRow, StoredStatus, Sums
from service.jobs.store import Store
from service.settings import Settings
from service.telemetry.logs import log_crash, logger
from service.telemetry.metrics import Metrics

T = TypeVar("T")

#: Most jobs that one transaction removes, with their results.
_REMOVED_AT_ONCE = 16


class Ledger:
    """Every job that the server has.

    Attributes:
        folder, store: for :meth:`on_disk` only.
        jobs: by id, in the order of their uploads.
        closed: why the folder cannot be had, None where it can.
    """

    folder: JobsFolder
    store: Store

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self.jobs: dict[str, Job] = {}
        self.quota = Quota(settings)
        self.closed: JobsUnavailableError | None = JobsUnavailableError("the jobs folder is not open yet")
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="laplora-jobs-disk")
        self._changing = asyncio.Lock()
        self._sweeper: asyncio.Task[None] | None = None

    # The folder

    async def on_disk(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what the function returns, called in the one thread that reads and writes the folder."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)

    async def open(self) -> None:
        """Open the folder and take its jobs in; where that fails, ``closed`` and the log say why."""
        path = self._settings.jobs_dir or default_jobs_dir()
        try:
            jobs = await self.on_disk(self._open, path)
        except (LaploraError, sqlite3.Error, OSError, ValueError) as error:
            if not isinstance(error, LaploraError):
                log_crash("the jobs folder could not be opened", error)
                error = JobsUnavailableError("the jobs folder cannot be opened: the server's log has the details")
            if str(error) != str(self.closed):
                files = {"files": error.names} if isinstance(error, StrangersError) else {}
                shown = "".join(f", {name!r}" for name in files.get("files", ()))
                fields = {"event": "jobs_unavailable", "jobs_dir": str(path), **files}
                logger.error("jobs are not available: %s%s", error, shown, extra=fields)
            self.closed = JobsUnavailableError(str(error))
            return
        self.jobs = {job.id: job for job in jobs}
        self.closed = None
        waiting = [job for job in jobs if not job.finished]
        for job in waiting:
            self.quota.hold(job.id, job.owner, self.folder.inputs(job.id).stat().st_size)
        logger.info("jobs folder", extra={"event": "jobs_folder", "jobs_dir": str(path), "queued": len(waiting)})
        self._count()
        self.sweep_soon()

    def _open(self, path: Path) -> list[Job]:
        with ExitStack() as undone:
            folder = JobsFolder(path)
            undone.callback(folder.close)
            store = Store(folder.database)
            undone.callback(store.close)
            jobs = store.jobs()
            folder.discard_others({job.id for job in jobs if not job.finished})
            for job in jobs:
                # Only a cancelled job's upload is removed before its end is on disk.
                if not job.finished and not folder.inputs(job.id).exists():
                    job.status, job.finished_at = "cancelled", time.time()
                    store.end(job.number, "cancelled", finished_at=job.finished_at)
            undone.pop_all()
        self.folder, self.store = folder, store
        return jobs

    async def close(self) -> None:
        """Let another process have the folder."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
        if self.closed is None:
            self.closed = JobsUnavailableError("the jobs folder is closed")
            await self.on_disk(self.store.close)
            await self.on_disk(self.folder.close)
        self._disk.shutdown(wait=False)

    def sweep_soon(self) -> None:
        """Remove from the disk what is no job's any more, a little at a time, so that nothing waits long for it."""
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(), name="laplora-jobs-sweeper")

    async def _sweep(self) -> None:
        try:
            while self.closed is None and await self.on_disk(self.store.sweep):
                pass
        except StorageFullError:
            return  # tried again by and by
        except Exception as error:
            log_crash("what is left of jobs could not be removed", error)

    # Jobs come and go

    async def add(self, job: Job) -> None:
        """Keep a new job, whose whole upload is on disk."""
        await self.on_disk(self.folder.keep, job.id)
        job.number = await self.on_disk(self.store.add, job)
        self.jobs[job.id] = job
        logger.info("job queued", extra={"event": "job_queued", "job": job.id, "rows": job.about.rows})
        self._count()

    async def remove(self, jobs: Sequence[Job]) -> None:
        """Forget finished jobs; StorageFullError as of ``end``."""
        async with self._changing:
            jobs = [job for job in jobs if job.id in self.jobs]
            for first in range(0, len(jobs), _REMOVED_AT_ONCE):
                some = jobs[first : first + _REMOVED_AT_ONCE]
                await self.on_disk(self.store.remove, [job.number for job in some])
                for job in some:
                    del self.jobs[job.id]
            self._count()
        self.sweep_soon()

    async def end(
        self,
        job: Job,
        status: StoredStatus,
        *,
        error: dict[str, Any] | None = None,
        result: str | None = None,
        bad: Mapping[int, str] | None = None,
    ) -> None:
        """Let a job end of which nothing runs, and remove its prompts; one that has ended stays as it is.

        Args:
            bad: codes by number, of rows that are not over.

        Raises:
            StorageFullError: that cannot be written down yet.
        """
        async with self._changing:
            if job.finished:
                return
            if status == "cancelled":
                # First the upload, which makes room on a disk that has none.
                await self.on_disk(self.folder.discard, job.id)
            finished_at, bad = time.time(), bad or {}
            await self.on_disk(
                lambda: self.store.end(job.number, status, finished_at=finished_at, error=error, result=result, bad=bad)
            )
            job.bad_counts.update(bad.values())
            self._metrics.count_job_rows(0, bad=len(bad))
            code = {} if error is None else {"code": error["code"]}
            fields = {"job": job.id, "status": status, "rows_done": job.rows_done, "rows_bad": job.rows_bad, **code}
            logger.info("job ended", extra={"event": "job_ended", **fields})
            self._over(job, status, finished_at, error)
            await self.on_disk(self.folder.discard, job.id)
        self.sweep_soon()

    def lose(self, job: Job, error: Exception) -> None:
        """Let a job fail whose end could not be written down: it runs no more until the next start."""
        log_crash("the end of a job could not be kept", error)
        self._over(job, "failed", time.time(), _detail(error))

    def _over(self, job: Job, status: StoredStatus, finished_at: float, error: dict[str, Any] | None) -> None:
        job.status, job.finished_at, job.error, job.paused = status, finished_at, error, None
        self.quota.release(job.id)
        self.tell(job)

    # A job goes on

    def runs(self, job: Job) -> None:
        """Note that a queued job has begun to run. A paused one stays so until something of it went through."""
        if not job.pace:
            job.pace.append((time.monotonic(), job.rows_done))
        if job.status == "queued":
            job.status, job.started_at = "running", job.started_at or time.time()
            self.tell(job)

    def pause(self, job: Job, error: Exception) -> None:
        """Note that a job waits for what it was refused for."""
        detail = _detail(error)
        job.pace.clear()
        new = job.paused is None or job.paused["code"] != detail["code"]
        job.status, job.paused = "paused", {"code": detail["code"], "message": detail["message"]}
        if new:
            logger.warning("job paused", extra={"event": "job_paused", "job": job.id, "code": detail["code"]})
            self.tell(job)

    def stopped(self, job: Job) -> None:
        """Note that nothing of a job runs; if it has not ended it waits for its next turn."""
        if not job.finished and not job.cancelling:
            job.status, job.paused = "queued", None
            self.tell(job)

    async def keep_rows(
        self, job: Job, chunk: Chunk, scored: Sequence[ScoredRow], bad: Mapping[int, str], *, sums: Sums
    ) -> None:
        """Keep the results of a job's next rows; ``sums`` are those of all rows, with these."""
        started_at = job.started_at or time.time()
        kept = await self.on_disk(
            lambda: self.store.add_rows(
                job.number,
                chunk.rows,
                scored=scored,
                bad=bad,
                sums=sums,
                input_offset=chunk.end,
                started_at=started_at,
            )
        )
        if not kept:
            raise RuntimeError("the rows are not the job's next ones")
        job.rows_done = chunk.rows[1]
        job.pace.append((time.monotonic(), job.rows_done))
        job.bad_counts.update(bad.values())
        job.sums, job.input_offset, job.started_at = sums, chunk.end, started_at
        job.status, job.paused = "running", None
        self._metrics.count_job_rows(len(scored), bad=len(bad))
        self.tell(job)

    async def bad_rows(self, job: Job) -> list[tuple[int, str]]:
        """Return the numbers, from 0, of a job's rows that could not be scored, and the codes of why."""
        return await self.on_disk(self.store.bad_rows, job.number) if job.rows_bad else []

    async def result(self, job: Job) -> str | None:
        """Return a job's result, JSON; None before it is done."""
        return await self.on_disk(self.store.result, job.number) if job.status == "done" else None

    async def keep_begun(self, job: Job, under_way: Mapping[Rows, int]) -> None:
        """Keep which rows are under way, and their lone tries, beside what earlier processes left begun."""
        begun = {rows: tries for rows, tries in {**job.begun, **under_way}.items() if rows[1] > job.rows_done}
        await self.on_disk(self.store.set_begun, job.number, begun)

    async def keep_absence(self, job: Job) -> None:
        """Keep for how long a job's artifact has not been loaded; a disk without room forgets it."""
        with suppress(StorageFullError):
            await self.on_disk(self.store.set_absent, job.number, job.absent_s)

    def tell(self, job: Job) -> None:
        """Wake who follows a job: it has changed."""
        job.changes += 1
        job.changed.set()
        job.changed = asyncio.Event()
        self._count()

    def _count(self) -> None:
        counts = Counter(job.status for job in self.jobs.values())
        for status in STATUSES:
            self._metrics.set_jobs(status, counts[status])


def _detail(error: Exception) -> Any:
    return error_content(error, "")["error"]
