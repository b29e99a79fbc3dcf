"""Every job that the server has: taken in, listed, followed, cancelled, kept for a while. Belongs to the event loop.

What is in memory is what is on disk, and beside it how far a running job is; the disk is written first. All of it is
written by one thread. Where the folder cannot be had, the server serves without jobs and tries again.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from laplora.errors import LaploraError
from service.artifacts.host import ArtifactHost
from service.errors import (
    IdempotencyConflictError,
    JobNotFoundError,
    JobsUnavailableError,
    StorageFullError,
    error_content,
    kind_of,
)
from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.evaluate import MeasureOptions
from service.jobs.chunks import Chunk
from service.jobs.folder import JobsFolder, StrangersError, default_jobs_dir
from service.jobs.quota import Quota
from service.jobs.records import STATUSES, About, Job, StoredStatus
from service.jobs.runner import Runner
from service.jobs.store import ScoredRow, Store
from service.jobs.sums import Sums
from service.jobs.upload import Limits, Upload
from service.jobs.waiting import cancelled, whole
from service.scoring.scorer import Scorer
from service.settings import Settings
from service.telemetry.logs import log_crash, logger
from service.telemetry.metrics import Metrics

T = TypeVar("T")

#: How often the folder is tried again, and finished jobs are looked through for those whose time is over.
_KEEPING_S = 5.0
#: Most jobs that one transaction removes, with their results.
_REMOVED_AT_ONCE = 16


class JobBoard:
    """The jobs of one server.

    Attributes:
        folder, store: for :meth:`on_disk_thread` only.
        draining: set once nothing more runs; streams of events end.
        boot: differs between starts of the server, for the ids of events.
    """

    folder: JobsFolder
    store: Store

    def __init__(self, settings: Settings, scorer: Scorer, artifacts: ArtifactHost, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._jobs: dict[str, Job] = {}
        #: By owner and idempotency key: uploads that have not ended.
        self._uploads: set[object] = set()
        self.quota = Quota(self._settings)
        self._cancelling: set[str] = set()
        self._why_closed: JobsUnavailableError | None = JobsUnavailableError("the jobs folder is not open yet")
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="laplora-jobs-disk")
        self._checkers = ThreadPoolExecutor(2, thread_name_prefix="laplora-jobs-upload")
        self._runner = Runner(settings, scorer, artifacts, self)
        self._keeper: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self.draining = False
        self.boot = uuid.uuid4().hex[:8]

    # Life

    async def open(self) -> None:
        """Open the folder, take up where the last server stopped, and look after it from now on."""
        await self._try_open()
        self._keeper = asyncio.create_task(self._keep_up(), name="laplora-jobs-keeper")

    def drain(self) -> None:
        """Stop what runs after its last whole chunk, to go on at the next start; end the streams of events."""
        self.draining = True
        self._runner.stop()
        for job in self._jobs.values():
            self._tell(job)

    async def close(self) -> None:
        """Drain, and let another process have the folder."""
        self.drain()
        await cancelled([self._keeper])
        await self._runner.wait_closed()
        await cancelled([self._sweeper])
        if self._why_closed is None:
            self._why_closed = JobsUnavailableError("the jobs folder is closed")
            await self.on_disk_thread(self._close_folder)
        self._disk.shutdown(wait=False)
        self._checkers.shutdown(wait=False, cancel_futures=True)

    def _close_folder(self) -> None:
        self.store.close()
        self.folder.close()

    async def on_disk_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what the function returns, called in the one thread that reads and writes the folder."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)

    async def _try_open(self) -> None:
        path = self._settings.jobs_dir or default_jobs_dir()
        try:
            jobs = await self.on_disk_thread(self._open_folder, path)
        except (LaploraError, sqlite3.Error, OSError, ValueError) as error:
            if not isinstance(error, LaploraError):
                log_crash("the jobs folder could not be opened", error)
                error = JobsUnavailableError("the jobs folder cannot be opened: the server's log has the details")
            if str(error) != str(self._why_closed):
                files = {"files": error.names} if isinstance(error, StrangersError) else {}
                shown = "".join(f", {name!r}" for name in files.get("files", ()))
                fields = {"event": "jobs_unavailable", "jobs_dir": str(path), **files}
                logger.error("jobs are not available: %s%s", error, shown, extra=fields)
            self._why_closed = JobsUnavailableError(str(error))
            return
        self._jobs = {job.id: job for job in jobs}
        self._why_closed = None
        for job in jobs:
            if not job.finished:
                job.hold = self.quota.hold(job.owner, self.folder.inputs(job.id).stat().st_size)
        waiting = sum(not job.finished for job in jobs)
        logger.info("jobs folder", extra={"event": "jobs_folder", "jobs_dir": str(path), "queued": waiting})
        self._count()
        self._sweep()
        self._runner.wake()

    def _open_folder(self, path: Path) -> list[Job]:
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

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(_KEEPING_S)
            try:
                if self._why_closed is not None:
                    await self._try_open()
                    continue
                for job in [job for job in self._jobs.values() if job.id in self._cancelling]:
                    await self.cancel(job)
                await self._remove_old()
                self._sweep()
            except StorageFullError:
                continue
            except Exception as error:
                log_crash("the jobs folder could not be kept up", error)

    def _require_open(self) -> None:
        if self._why_closed is not None:
            raise self._why_closed

    # Asked by the routes

    def jobs_of(self, owner: str | None) -> list[Job]:
        """Return one caller's jobs, or everybody's, the newest first.

        Raises:
            JobsUnavailableError: the folder is not open.
        """
        self._require_open()
        return [job for job in reversed(self._jobs.values()) if owner in (None, job.owner)]

    def job(self, job_id: str, owner: str | None) -> Job:
        """Return a job.

        Args:
            owner: who asks; None for everybody's.

        Raises:
            JobNotFoundError: none of this id, or another caller's.
            JobsUnavailableError: the folder is not open.
        """
        self._require_open()
        job = self._jobs.get(job_id)
        if job is None or owner not in (None, job.owner):
            raise JobNotFoundError("no job of this id: GET /evaluate/jobs lists yours")
        return job

    async def result(self, job: Job) -> str | None:
        """Return a job's result, JSON; None before it is done."""
        return await self.on_disk_thread(self.store.result, job.number) if job.status == "done" else None

    async def bad_rows(self, job: Job) -> list[tuple[int, str]]:
        """Return the numbers, from 0, of a job's rows that could not be scored, and the codes of why."""
        return await self.on_disk_thread(self.store.bad_rows, job.number) if job.rows_bad else []

    def known(
        self, owner: str, key: str | None, artifact: str | None, options: MeasureOptions, *, announced_bytes: int
    ) -> Job | None:
        """Return the job that this caller uploaded under this key, if there is one.

        Args:
            announced_bytes: of the upload, 0 where it does not say.

        Raises:
            IdempotencyConflictError: it is being uploaded, or was uploaded with other options.
            TooManyJobsError: there is none, and no room for one.
            JobsUnavailableError: the folder is not open.
        """
        self._require_open()
        if key is not None:
            if (owner, key) in self._uploads:
                raise IdempotencyConflictError("an upload with this Idempotency-Key has not ended: try again after it")
            for job in self._jobs.values():
                if (job.owner, job.idempotency_key) == (owner, key):
                    if job.about.options != options or artifact not in (None, job.about.artifact.name):
                        raise IdempotencyConflictError(
                            "a job with this Idempotency-Key has other options: send another key for another job",
                            field="idempotency-key",
                        )
                    return job
        self.quota.check_room(owner, announced_bytes)
        return None

    async def take(
        self,
        body: AsyncIterator[bytes],
        *,
        owner: str,
        key: str | None,
        artifact: ArtifactRef,
        labels: Sequence[str],
        options: MeasureOptions,
        tokens_of: Callable[[dict[str, Any]], int],
    ) -> Job:
        """Return the job of an upload, on disk and queued; nothing of it stays if this fails or is cancelled.

        Call ``known`` before, without awaiting anything in between.

        Raises:
            BodyTooLargeError, TooManyJobsError: as ``Quota.grow``.
            LaploraError: as ``Upload``.
        """
        job_id = uuid.uuid4().hex
        place: object = job_id if key is None else (owner, key)
        self._uploads.add(place)
        hold, received = self.quota.hold(owner, 0), 0
        loop = asyncio.get_running_loop()
        limits = Limits(self._settings.max_job_rows, self._settings.max_body_bytes)
        upload: Upload | None = None
        try:
            path = self.folder.upload(job_id)
            upload = await whole(loop.run_in_executor(self._checkers, lambda: Upload(path, limits, tokens_of, labels)))
            async for chunk in body:
                received += len(chunk)
                self.quota.grow(hold, received)
                await whole(loop.run_in_executor(self._checkers, upload.feed, chunk))
            await whole(loop.run_in_executor(self._checkers, upload.finish))
            about = About(
                artifact=artifact,
                labels=tuple(labels),
                options=options,
                rows=upload.rows,
                tokens=upload.tokens,
                created_at=time.time(),
            )
            job = Job(job_id, owner, key, about, hold=hold)
            await whole(self._register(job))
        finally:
            self._uploads.discard(place)
            if upload is not None:
                upload.close()
            if job_id not in self._jobs:
                self.quota.release(hold)
                await whole(self.on_disk_thread(self.folder.discard, job_id))
        with suppress(StorageFullError):
            await self._remove_old()
        return job

    async def _register(self, job: Job) -> None:
        def keep() -> int:
            self.folder.keep(job.id)
            return self.store.add(job)

        job.number = await self.on_disk_thread(keep)
        self._jobs[job.id] = job
        logger.info("job queued", extra={"event": "job_queued", "job": job.id, "rows": job.about.rows})
        self._count()
        self._runner.wake()

    async def cancel(self, job: Job) -> None:
        """Stop a job for good: its rows leave the queue at once, its prompts the disk. One that has ended stays so.

        Raises:
            StorageFullError: that cannot be written down yet; nothing of the job runs, and the server tries again.
        """
        self._cancelling.add(job.id)
        await self._runner.drop(job)
        async with self._changing:
            if not job.finished:
                # First the upload, which makes room on a disk that has none.
                await self.on_disk_thread(self.folder.discard, job.id)
                try:
                    await self._end(job, "cancelled")
                except StorageFullError as error:
                    self.pause(job, error)
                    raise
        self._cancelling.discard(job.id)

    async def remove(self, jobs: Sequence[Job]) -> None:
        """Forget finished jobs.

        Raises:
            StorageFullError: that cannot be written down yet.
        """
        async with self._changing:
            jobs = [job for job in jobs if job.id in self._jobs]
            for first in range(0, len(jobs), _REMOVED_AT_ONCE):
                some = jobs[first : first + _REMOVED_AT_ONCE]
                await self.on_disk_thread(self.store.remove, [job.number for job in some])
                for job in some:
                    del self._jobs[job.id]
            self._count()
        self._sweep()

    def _sweep(self) -> None:
        """Remove from the disk what is no job's any more, a little at a time, so that nothing waits long for it."""
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep_all(), name="laplora-jobs-sweeper")

    async def _sweep_all(self) -> None:
        try:
            while self._why_closed is None and await self.on_disk_thread(self.store.sweep):
                pass
        except StorageFullError:
            return  # tried again by and by
        except Exception as error:
            log_crash("what is left of jobs could not be removed", error)

    async def _remove_old(self) -> None:
        finished = [job for job in self._jobs.values() if job.finished]
        oldest_s = time.time() - self._settings.job_keep_s
        gone = [job for job in finished if job.finished_at is not None and job.finished_at < oldest_s]
        kept = [job for job in finished if job not in gone]
        # Beyond the limit whoever has most loses the oldest, so that no caller can push out another's.
        while kept and len(self._jobs) - len(gone) > self._settings.max_jobs:
            owners = [job.owner for job in kept]
            oldest = min(kept, key=lambda job: (-owners.count(job.owner), job.number))
            kept.remove(oldest)
            gone.append(oldest)
        if gone:
            await self.remove(gone)

    # Told by the runner

    def waiting(self) -> list[Job]:
        """Return the jobs that are to go on, in the order of their uploads."""
        if self._why_closed is not None:
            return []
        return [job for job in self._jobs.values() if not job.finished and job.id not in self._cancelling]

    def runs(self, job: Job) -> None:
        """A queued job has begun to run. A paused one stays so until something of it went through."""
        if job.status == "queued":
            job.status, job.started_at = "running", job.started_at or time.time()
            self._tell(job)

    def pause(self, job: Job, error: Exception) -> None:
        """A job waits for what it was refused for."""
        new = job.paused is None or job.paused["code"] != kind_of(error).code
        detail: Any = error_content(error, "")["error"]
        job.status, job.paused = "paused", {"code": detail["code"], "message": detail["message"]}
        if new:
            logger.warning("job paused", extra={"event": "job_paused", "job": job.id, "code": detail["code"]})
            self._tell(job)

    async def keep_rows(
        self, job: Job, chunk: Chunk, scored: Sequence[ScoredRow], bad: Mapping[int, str], *, sums: Sums
    ) -> None:
        """Keep the results of a job's next rows.

        Args:
            bad: by number, the codes of those without an answer.
            sums: of all rows, with these.
        """
        started_at = job.started_at or time.time()

        def write() -> bool:
            return self.store.add_rows(
                job.number,
                chunk.first,
                chunk.count,
                scored=scored,
                bad=bad,
                sums=sums,
                input_offset=chunk.end,
                started_at=started_at,
            )

        if not await self.on_disk_thread(write):
            raise RuntimeError("the rows are not the job's next ones")
        job.rows_done += chunk.count
        job.bad_counts.update(bad.values())
        job.sums, job.input_offset, job.started_at = sums, chunk.end, started_at
        job.status, job.paused = "running", None
        self._metrics.count_job_rows(len(scored), bad=len(bad))
        self._tell(job)

    async def begin(self, job: Job, chunk: Chunk, *, alone: bool) -> None:
        """Keep, before a chunk goes to the device, that it is under way: what takes the process with it is known then.

        Args:
            alone: nothing of any job is under way beside it.
        """
        tries = job.begun.get(chunk.rows, 0) + alone
        await self.on_disk_thread(self.store.set_begun, job.number, chunk.rows, tries)

    async def not_begun(self, job: Job, chunk: Chunk) -> None:
        """A chunk is not under way any more: the process lives, so it is not what a later end of it is about."""
        with suppress(StorageFullError):
            await self.on_disk_thread(self.store.set_begun, job.number, chunk.rows, job.begun.get(chunk.rows))

    async def none_begun(self, jobs: Sequence[Job]) -> None:
        """Nothing of these jobs is under way any more; what earlier processes left begun stays so."""
        with suppress(StorageFullError):
            begun = {
                job.number: {rows: tries for rows, tries in job.begun.items() if rows[1] > job.rows_done}
                for job in jobs
                if not job.finished
            }
            await self.on_disk_thread(self.store.restore_begun, begun)

    def keep_absence_soon(self, job: Job) -> None:
        """Keep, in the background, for how long a job's artifact has not been loaded."""
        task = asyncio.create_task(self.keep_absence(job))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def keep_absence(self, job: Job) -> None:
        """Keep for how long a job's artifact has not been loaded; a disk without room forgets it."""
        with suppress(StorageFullError):
            await self.on_disk_thread(self.store.set_absent, job.number, job.absent_s)

    async def end(
        self,
        job: Job,
        status: StoredStatus,
        *,
        error: dict[str, Any] | None = None,
        result: str | None = None,
        bad: Mapping[int, str] | None = None,
    ) -> None:
        """A job is done, or has failed. One that has ended otherwise meanwhile stays so.

        Args:
            bad: as of ``keep_rows``, of rows that are not over.
        """
        async with self._changing:
            if not job.finished:
                await self._end(job, status, error=error, result=result, bad=bad)
                await self.on_disk_thread(self.folder.discard, job.id)

    async def _end(
        self,
        job: Job,
        status: StoredStatus,
        *,
        error: dict[str, Any] | None = None,
        result: str | None = None,
        bad: Mapping[int, str] | None = None,
    ) -> None:
        finished_at = time.time()

        def write() -> bool:
            return self.store.end(
                job.number, status, finished_at=finished_at, error=error, result=result, bad=bad or {}
            )

        await self.on_disk_thread(write)
        job.status, job.finished_at, job.error, job.paused = status, finished_at, error, None
        job.bad_counts.update((bad or {}).values())
        self._metrics.count_job_rows(0, bad=len(bad or {}))
        self.quota.release(job.hold)
        code = {} if error is None else {"code": error["code"]}
        fields = {"job": job.id, "status": status, "rows_done": job.rows_done, "rows_bad": job.rows_bad, **code}
        logger.info("job ended", extra={"event": "job_ended", **fields})
        self._tell(job)
        self._sweep()

    def lose(self, job: Job, error: Exception) -> None:
        """A job has failed, and even that could not be written down: it runs no more until the next start."""
        log_crash("the end of a job could not be kept", error)
        job.status, job.paused, job.finished_at = "failed", None, time.time()
        detail: Any = error_content(error, "")["error"]
        job.error = detail
        self.quota.release(job.hold)
        self._tell(job)

    def stopped(self, job: Job) -> None:
        """A job runs no more; if it has not ended it waits for its next turn."""
        job.pace.clear()
        if not job.finished and job.id not in self._cancelling:
            job.status, job.paused = "queued", None
            self._tell(job)

    def _tell(self, job: Job) -> None:
        job.changes += 1
        job.changed.set()
        job.changed = asyncio.Event()
        self._count()

    def _count(self) -> None:
        counts = Counter(job.status for job in self._jobs.values())
        for status in STATUSES:
            self._metrics.set_jobs(status, counts[status])
