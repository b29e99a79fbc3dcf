"""The jobs of one server, in memory and on disk. The disk is written first, by one thread; memory follows.

A job that this server has claimed is ``mine``: memory is right about it, and every write names the claim. Of another
server's, memory has what the database said last (``refresh``). Belongs to the event loop. Where the folder or the
database cannot be had, ``closed`` says why, and ``open`` can be called again.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from laplora.errors import LaploraError
from service.errors import JobsUnavailableError, StorageFullError, error_content, kind_of
from service.jobs.chunks import Chunk
from service.jobs.database import Database
from service.jobs.folder import JobsFolder, StrangersError, default_jobs_dir
from service.jobs.quota import Quota
from service.jobs.records import STATUSES, Job, Rows, ScoredRow, StoredStatus, Sums
from service.jobs.remote import RemoteStore
from service.jobs.shown import event_of
from service.jobs.store import ClaimLostError, Store, answer_bytes
from service.jobs.waiting import BackOffs
from service.settings import Settings
from service.telemetry.logs import log_crash, logger
from service.telemetry.metrics import Metrics

T = TypeVar("T")

#: What passes: a disk without room, a database or a store of uploads that does not answer.
STORAGE_ERRORS = (StorageFullError, JobsUnavailableError)
#: Most jobs that one transaction removes.
_REMOVED_AT_ONCE = 16


class Ledger:
    """Every job that the server knows of.

    Attributes:
        folder, store: for :meth:`on_disk` and :meth:`in_files` only.
        shared: whether other servers have the same jobs.
        server: this server's name among them, new at each start.
        jobs: by id, in the order of their uploads.
        closed: why they cannot be had, None where they can.
    """

    folder: JobsFolder
    store: Store

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self.shared = settings.jobs_url is not None
        self.server = uuid.uuid4().hex
        self.jobs: dict[str, Job] = {}
        self.quota = Quota(settings)
        self.closed: JobsUnavailableError | None = JobsUnavailableError("the jobs folder is not open yet")
        self._living = 1
        self._back_offs = BackOffs()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="laplora-jobs-disk")
        self._files = ThreadPoolExecutor(2, thread_name_prefix="laplora-jobs-files")
        self._changing = asyncio.Lock()
        self._refreshing = asyncio.Lock()
        self._refreshed_at = -math.inf
        self._sweeper: asyncio.Task[None] | None = None

    # The folder

    async def on_disk(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what the function returns, called in the one thread that reads and writes the database."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)

    async def in_files(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what the function returns, called in one of the threads that read and write uploads."""
        return await asyncio.get_running_loop().run_in_executor(self._files, function, *arguments)

    async def open(self) -> None:
        """Open folder and database and take the jobs in; where that fails, ``closed`` and the log say why."""
        path = self._settings.jobs_dir or default_jobs_dir()
        try:
            jobs = await self.on_disk(self._open, path)
        except (LaploraError, SQLAlchemyError, sqlite3.Error, OSError, ValueError) as error:
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
        for job in jobs:
            self._place(job)
        self.closed = None
        queued = sum(not job.finished for job in jobs)
        logger.info("jobs folder", extra={"event": "jobs_folder", "jobs_dir": str(path), "queued": queued})
        self._count()
        self.sweep_soon()

    def _open(self, path: Path) -> list[Job]:
        settings = self._settings
        with ExitStack() as undone:
            remote = RemoteStore(settings.jobs_files_url) if settings.jobs_files_url else None
            folder = JobsFolder(path, shared=self.shared, remote=remote)
            undone.callback(folder.close)
            if settings.jobs_url is None:
                store = Store(Database.in_file(folder.database))
            else:
                store = Store(Database.at_url(settings.jobs_url.get_secret_value()))
            undone.callback(store.close)
            self._living = store.hear(self.server, alone=not self.shared, lease_s=settings.job_lease_s)
            jobs = store.jobs()
            folder.discard_others({job.id for job in jobs if not job.finished or job.keeps_rows})
            for job in jobs:
                # Only a cancelled job's upload is removed before its end is on disk.
                if remote is None and not self.shared and not job.finished and not folder.inputs(job.id).exists():
                    job.status, job.finished_at, job.keeps_rows = "cancelled", time.time(), False
                    event = event_of(job)
                    job.events = store.end(job.number, "cancelled", finished_at=job.finished_at, event=event)
            undone.pop_all()
        self.folder, self.store = folder, store
        return jobs

    async def close(self) -> None:
        """Let another process have the folder, and other servers the jobs."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
        if self.closed is None:
            self.closed = JobsUnavailableError("the jobs folder is closed")
            with suppress(*STORAGE_ERRORS):
                await self.on_disk(self.store.leave, self.server)
            await self.on_disk(self.store.close)
            await self.on_disk(self.folder.close)
        self._disk.shutdown(wait=False)
        self._files.shutdown(wait=False)

    def sweep_soon(self) -> None:
        """Remove from the disk what is no job's any more, a little at a time, so that nothing waits long for it."""
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(), name="laplora-jobs-sweeper")

    async def _sweep(self) -> None:
        try:
            while self.closed is None and await self.on_disk(self.store.sweep):
                pass
        except STORAGE_ERRORS:
            return  # tried again by and by
        except Exception as error:
            log_crash("what is left of jobs could not be removed", error)

    # Whose jobs are whose

    async def claim(self) -> list[Job]:
        """Say that this server lives, claim its share of the jobs that nobody runs, and return the new ones."""
        settings = self._settings
        self._living = await self.on_disk(
            lambda: self.store.hear(self.server, alone=not self.shared, lease_s=settings.job_lease_s)
        )
        unfinished = {job.number: job for job in self.jobs.values() if not job.finished}
        held = [number for number, job in unfinished.items() if job.mine]
        avoided = self._back_offs.now(unfinished)
        left = sum(not job.mine and job.left_at is not None for job in unfinished.values())
        claim = partial(
            self.store.claim,
            self.server,
            max(0, self.share - sum(unfinished[number].shared_out for number in held)),
            without=[*held, *avoided],
            most_left=math.ceil(left / self._living),
        )
        numbers = await self.on_disk(claim)
        if not numbers:
            return []
        claimed = await self.on_disk(self.store.jobs, numbers)
        jobs = [self._take_in(job) for job in claimed if not job.finished]
        for job in jobs:
            job.mine, job.beyond_share = True, job.left_at is not None
            if job.left_at is None:
                job.status, job.paused = "queued", None
            job.pace.clear()
        return jobs

    @property
    def share(self) -> int:
        """How many unfinished jobs this server may have: all, or as many as each of those that live.

        What another one cannot run is no part of it.
        """
        unfinished = sum(job.shared_out for job in self.jobs.values())
        return max(1, math.ceil(unfinished / self._living)) if self.shared else max(1, unfinished)

    async def release(self, job: Job) -> None:
        """Let another server have a job of which nothing runs here."""
        job.mine = False
        await self.on_disk(self.store.release, job.number, job.fence)
        await self.in_files(self.folder.forget_copy, job.id)

    async def left_s(self, job: Job) -> float:
        """Return for how many seconds no server that claimed a job has had what it needs; 0 where one has."""
        return await self.on_disk(self.store.left_s, job.number)

    async def leave(self, job: Job, error: Exception, reason: str) -> None:
        """Let another server have a job that this one cannot run, and do not claim it again for a while.

        Args:
            error: why it cannot; reason: what the job waits for, in words.

        Raises:
            StorageFullError, JobsUnavailableError, ClaimLostError: nothing was kept.
        """
        paused = {"code": kind_of(error).code, "message": reason}
        new = job.paused != paused
        event, fence = event_of(replace(job, status="paused", paused=paused)), job.fence
        job.left_at, sequence = await self.on_disk(
            lambda: self.store.leave_job(job.number, paused, event if new else None, fence=fence)
        )
        job.status, job.paused, job.server, job.mine = "paused", paused, None, False
        job.pace.clear()
        self._back_offs.put(job.number)
        if new:
            fields = {"event": "job_left", "job": job.id, "code": paused["code"]}
            logger.warning("a job is left to another server: %s", reason, extra=fields)
            self._happened(job, sequence, event)
        else:
            self._wake(job)
        await self.in_files(self.folder.forget_copy, job.id)

    async def refresh(self) -> list[Job]:
        """Learn what other servers did; return the jobs that were this one's, and are not any more.

        Raises:
            StorageFullError, JobsUnavailableError: as of ``Database.transaction``.
        """
        if not self.shared or self.closed is not None:
            return []
        called_at = time.monotonic()
        async with self._refreshing:
            if self._refreshed_at >= called_at:
                return []  # one that began after this call was made has it all
            begun_at = time.monotonic()
            known = {job.number: job for job in self.jobs.values()}
            versions = await self.on_disk(self.store.versions)
            lost = [job for number, job in known.items() if number not in versions and job.id in self.jobs]
            gone = [job for job in lost if job.mine]
            for job in lost:
                self._forget(job)
            changed = [
                number
                for number, (fence, events) in versions.items()
                if (own := known.get(number)) is None or _version(own) < (fence, 0 if own.mine else events)
            ]
            for read in await self.on_disk(self.store.jobs, changed) if changed else ():
                now = self.jobs.get(read.id)
                # What this server wrote meanwhile is newer than what was read.
                if now is not None and _version(now) >= (read.fence, 0 if now.mine else read.events):
                    continue
                if now is not None and now.mine:
                    gone.append(now)
                self._take_in(read)
            self._refreshed_at = begun_at
            return gone

    def _take_in(self, read: Job) -> Job:
        """Let memory say of a job what the database says; return the job of this id that everybody holds."""
        job = self.jobs.get(read.id)
        if job is None:
            newest = next(reversed(self.jobs.values()), read)
            job = self.jobs[read.id] = read
            if read.number < newest.number:
                self.jobs = dict(sorted(self.jobs.items(), key=lambda item: item[1].number))
        else:
            for name in _STORED:
                setattr(job, name, getattr(read, name))
            job.mine = job.beyond_share = False
        self._place(job)
        self._wake(job)
        return job

    def _place(self, job: Job) -> None:
        """Give a job that was read its place in the quota, and the status that the database has no word for."""
        if job.finished:
            self.quota.release(job.id)
            return
        self._hold(job)
        if job.left_at is not None:
            job.status = "paused"
        elif job.server not in (None, self.server):
            job.status = "paused" if job.paused else ("running" if job.started_at else "queued")
            job.pace.append((time.monotonic(), job.rows_done))

    def _hold(self, job: Job) -> None:
        size = job.about.upload_bytes
        if not size:
            with suppress(OSError):
                size = self.folder.inputs(job.id).stat().st_size
        self.quota.hold(job.id, job.owner, size + job.answer_bytes)

    def _forget(self, job: Job) -> None:
        self.jobs.pop(job.id, None)
        self.quota.release(job.id)
        if not job.finished:
            job.status = "cancelled"
        self._wake(job)

    # Jobs come and go

    async def add(self, job: Job) -> None:
        """Keep a new job, whose whole upload is on disk."""
        await self.in_files(self.folder.keep, job.id)
        job.keeps_rows = job.about.keep_rows
        event = event_of(job)
        job.number = await self.on_disk(self.store.add, job, event)
        self._happened(job, 1, event)
        self.jobs[job.id] = job
        logger.info("job queued", extra={"event": "job_queued", "job": job.id, "rows": job.about.rows})
        self._count()

    async def remove(self, jobs: Sequence[Job]) -> None:
        """Forget finished jobs; StorageFullError as of ``end``."""
        async with self._changing:
            jobs = [job for job in jobs if job.id in self.jobs]
            for first in range(0, len(jobs), _REMOVED_AT_ONCE):
                some = jobs[first : first + _REMOVED_AT_ONCE]
                for job in some:
                    # First, so that no prompt is left of which nobody knows.
                    await self.in_files(self.folder.discard, job.id)
                await self.on_disk(self.store.remove, [job.number for job in some])
                for job in some:
                    self.jobs.pop(job.id, None)
                    self._wake(job)
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
        """Let a job end of which nothing runs here, and remove its prompts unless they are kept.

        One that has ended stays as it is.

        Args:
            bad: codes by number, of rows that are not over.

        Raises:
            StorageFullError, JobsUnavailableError: that cannot be written down yet.
            ClaimLostError: it is another server's by now; any server may cancel it.
        """
        async with self._changing:
            if job.finished:
                return
            cancelled = status == "cancelled"
            if cancelled:
                # First the upload, which makes room on a disk that has none.
                await self.in_files(self.folder.discard, job.id)
            finished_at, bad = time.time(), bad or {}
            after = replace(job, status=status, finished_at=finished_at, error=error, paused=None)
            after.bad_counts = job.bad_counts + Counter(bad.values())
            event, fence = event_of(after), None if cancelled else job.fence
            sequence = await self.on_disk(
                lambda: self.store.end(
                    job.number,
                    status,
                    finished_at=finished_at,
                    event=event,
                    fence=fence,
                    error=error,
                    result=result,
                    bad=bad,
                )
            )
            job.fence += 1
            job.keeps_rows = job.keeps_rows and not cancelled
            job.bad_counts = after.bad_counts
            self._metrics.count_job_rows(0, bad=len(bad))
            code = {} if error is None else {"code": error["code"]}
            fields = {"job": job.id, "status": status, "rows_done": job.rows_done, "rows_bad": job.rows_bad, **code}
            logger.info("job ended", extra={"event": "job_ended", **fields})
            self._over(job, status, finished_at, error)
            self._happened(job, sequence, event)
            done_with = self.folder.forget_copy if job.keeps_rows else self.folder.discard
            await self.in_files(done_with, job.id)
        self.sweep_soon()

    def lose(self, job: Job, error: Exception) -> None:
        """Let a job fail whose end could not be written down: it runs no more until the next start."""
        log_crash("the end of a job could not be kept", error)
        self._over(job, "failed", time.time(), _detail(error))
        self._happened(job, job.events + 1, event_of(job))

    def _over(self, job: Job, status: StoredStatus, finished_at: float, error: dict[str, Any] | None) -> None:
        job.status, job.finished_at, job.error, job.paused = status, finished_at, error, None
        job.server, job.mine = None, False
        self.quota.release(job.id)

    # A job goes on

    def runs(self, job: Job) -> None:
        """Note that a queued job, or one that was left, has begun to run.

        Another paused one stays so until something of it went through.
        """
        if not job.pace:
            job.pace.append((time.monotonic(), job.rows_done))
        if job.status == "queued" or job.left_at is not None:
            job.status, job.started_at = "running", job.started_at or time.time()
            job.paused = job.left_at = None
            self._back_offs.forget(job.number)
            self._publish(job)

    def pause(self, job: Job, error: Exception) -> None:
        """Note that a job waits for what it was refused for."""
        detail = _detail(error)
        job.pace.clear()
        new = job.paused is None or job.paused["code"] != detail["code"]
        job.status, job.paused = "paused", {"code": detail["code"], "message": detail["message"]}
        if new:
            logger.warning("job paused", extra={"event": "job_paused", "job": job.id, "code": detail["code"]})
            self._publish(job)

    def stopped(self, job: Job) -> None:
        """Note that nothing of a job runs; if it has not ended it waits for its next turn."""
        if job.mine and not job.finished and not job.cancelling:
            job.status, job.paused = "queued", None
            self._publish(job)

    async def keep_rows(
        self, job: Job, chunk: Chunk, scored: Sequence[ScoredRow], bad: Mapping[int, str], *, sums: Sums
    ) -> None:
        """Keep the answers of a job's next rows; ``sums`` are those of all rows, with these.

        Raises:
            ClaimLostError: it is another server's by now, or has ended.
        """
        started_at = job.started_at or time.time()
        pace = job.pace.copy()
        pace.append((time.monotonic(), chunk.rows[1]))
        after = replace(
            job,
            rows_done=chunk.rows[1],
            bad_counts=job.bad_counts + Counter(bad.values()),
            sums=sums,
            started_at=started_at,
            status="running",
            paused=None,
            pace=pace,
        )
        # The claim that the rows were scored under: by the time of the write there may be another.
        event, fence = event_of(after), job.fence
        sequence = await self.on_disk(
            lambda: self.store.add_rows(
                job.number,
                chunk.rows,
                fence=fence,
                scored=scored,
                bad=bad,
                sums=sums,
                input_offset=chunk.end,
                started_at=started_at,
                event=event,
            )
        )
        job.rows_done, job.bad_counts, job.pace = after.rows_done, after.bad_counts, pace
        job.answer_bytes += answer_bytes(scored)
        if job.id in self.jobs and not job.finished:
            self._hold(job)
        job.sums, job.input_offset, job.started_at = sums, chunk.end, started_at
        job.status, job.paused = "running", None
        self._metrics.count_job_rows(len(scored), bad=len(bad))
        self._happened(job, sequence, event)

    async def bad_rows(self, job: Job) -> list[tuple[int, str]]:
        """Return the numbers, from 0, of a job's rows that could not be scored, and the codes of why."""
        return await self.on_disk(self.store.bad_rows, job.number) if job.rows_bad else []

    async def result(self, job: Job) -> str | None:
        """Return a job's result, JSON; None before it is done."""
        return await self.on_disk(self.store.result, job.number) if job.status == "done" else None

    async def keep_begun(self, job: Job, under_way: Mapping[Rows, int]) -> None:
        """Keep which rows are under way, and their lone tries, beside what earlier processes left begun."""
        begun = {rows: tries for rows, tries in {**job.begun, **under_way}.items() if rows[1] > job.rows_done}
        await self.on_disk(partial(self.store.set_begun, job.number, begun, fence=job.fence))

    async def keep_absence(self, job: Job) -> None:
        """Keep for how long a job's artifact has not been loaded; a disk without room forgets it."""
        with suppress(*STORAGE_ERRORS):
            await self.on_disk(partial(self.store.set_absent, job.number, job.absent_s, fence=job.fence))

    # What happened

    async def events(self, job: Job, after: int, most: int) -> list[tuple[int, bytes]]:
        """Return at most ``most`` of the kept events of a job after this one, in order, with their numbers.

        The newest are in memory, one object for all who read them.
        """
        recent = list(job.recent)
        if recent and recent[0][0] <= after + 1:
            return [event for event in recent if event[0] > after][:most]
        if job.events <= after:
            return []
        kept = await self.on_disk(self.store.events, job.number, after, most)
        return [(sequence, event_bytes(sequence, data)) for sequence, data in kept]

    def _publish(self, job: Job) -> None:
        """Bring what a job is now to disk as an event, and to those who follow it: behind what was written before."""
        event, fence = event_of(job), job.fence
        write: Callable[[], int]
        if job.status in ("paused", "running") and job.mine:
            write = partial(self.store.set_paused, job.number, job.paused, event, fence=fence)
        else:
            write = partial(self.store.add_event, job.number, event, fence=fence)
        job.publishing += 1
        loop = asyncio.get_running_loop()

        def written(future: Future[int]) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(published, future)

        def published(future: Future[int]) -> None:
            job.publishing -= 1
            error = None if future.cancelled() else future.exception()
            if error is None and not future.cancelled():
                self._happened(job, future.result(), event)
            else:
                # What it tells of is in memory, and the next event tells of it too.
                if error is not None and not isinstance(error, (*STORAGE_ERRORS, ClaimLostError)):
                    log_crash("an event of a job could not be kept", error)
                self._wake(job)

        try:
            self._disk.submit(write).add_done_callback(written)
        except RuntimeError:  # nothing is written any more
            job.publishing -= 1
            self._wake(job)
        self._count()

    def _happened(self, job: Job, sequence: int, event: str) -> None:
        if sequence > job.events:
            if job.recent and job.recent[-1][0] != sequence - 1:
                job.recent.clear()
            job.events = sequence
            job.recent.append((sequence, event_bytes(sequence, event)))
        self._wake(job)

    def _wake(self, job: Job) -> None:
        job.changed.set()
        job.changed = asyncio.Event()
        self._count()

    def tell_all(self) -> None:
        """Wake who follows jobs: the server is about to stop."""
        for job in self.jobs.values():
            self._wake(job)

    def _count(self) -> None:
        counts = Counter(job.status for job in self.jobs.values())
        for status in STATUSES:
            self._metrics.set_jobs(status, counts[status])


#: What the database says of a job.
_STORED = (
    "about",
    "status",
    "rows_done",
    "bad_counts",
    "begun",
    "input_offset",
    "sums",
    "absent_s",
    "error",
    "paused",
    "left_at",
    "started_at",
    "finished_at",
    "keeps_rows",
    "answer_bytes",
    "server",
    "fence",
    "events",
)


def _version(job: Job) -> tuple[int, int]:
    """Return what tells whether the database is ahead: of a job that runs here, only another claim, or its end."""
    return job.fence, 0 if job.mine else job.events


def event_bytes(sequence: int, data: str) -> bytes:
    """Return an event as it is sent: its id is its number."""
    return f"id: {sequence}\ndata: {data}\n\n".encode()


def _detail(error: Exception) -> Any:
    return error_content(error, "")["error"]
