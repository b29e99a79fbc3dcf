"""The disk of jobs: the threads that reach the folder and the database, and their opening, closing and sweeping.

Belongs to the event loop. If the folder or the database is not available, ``closed`` says why, and ``open`` can be
called again.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from laplora.errors import LaploraError
from service.errors import JobsUnavailableError, StorageFullError
from service.jobs.store.database import UNANSWERED, ConnectionLostError, Database
from service.jobs.store.folder import ForeignFilesError, JobsFolder, default_jobs_dir
from service.jobs.store.job_tables import JobTables
from service.jobs.store.records import Job
from service.jobs.store.remote import RemoteUploads
from service.settings import Settings
from service.telemetry.logs import log_crash, logger

T = TypeVar("T")

#: Errors that pass: a full disk, a database or a store of uploads that does not answer.
STORAGE_ERRORS = (StorageFullError, JobsUnavailableError)


class Disk:
    """The folder and the database of jobs.

    Attributes:
        folder, tables: for :meth:`in_files` and :meth:`in_database` only.
        shared: whether other servers have the same jobs.
        server: this server's name among them, new at each start.
        living: how many servers live, this one counted, when they were last counted.
        closed: why jobs cannot be had, None where they can.
    """

    folder: JobsFolder
    tables: JobTables

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.shared = settings.jobs_url is not None
        self.server = uuid.uuid4().hex
        self.living = 1
        self.closed: JobsUnavailableError | None = JobsUnavailableError("the jobs folder is not open yet")
        self._database_thread = ThreadPoolExecutor(1, thread_name_prefix="laplora-jobs-disk")
        self._files_threads = ThreadPoolExecutor(2, thread_name_prefix="laplora-jobs-files")
        self._sweeper: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Raise JobsUnavailableError where a database that servers share lets what is in the block wait for too long.

        Work that has begun may still be completed.
        """
        try:
            async with asyncio.timeout(2 * self._settings.jobs_timeout_s if self.shared else None):
                yield
        except TimeoutError:
            raise JobsUnavailableError(UNANSWERED) from None

    async def in_database(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what the function returns, called in the one thread that reads and writes the database.

        Called once more where the connection was lost meanwhile. Raises as ``in_time``.
        """
        async with self.in_time():
            return await self._in_database_thread(_once_more, function, *arguments)

    async def ask(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what the function returns of the database and the arguments, called as by ``in_database``.

        Raises:
            JobsUnavailableError, StorageFullError: the database is not open, or does not answer.
        """
        if self.closed is not None:
            raise self.closed
        return await self.in_database(function, self.tables.database, *arguments)

    @property
    def look_s(self) -> float:
        """Seconds between two looks: several within a lease, so that one that takes long costs no job."""
        every = self._settings.job_look_s
        return min(every, self._settings.job_lease_s / 5) if self.shared else every

    async def _in_database_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._database_thread, function, *arguments)

    async def in_files(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what the function returns, called in one of the threads that read and write uploads."""
        return await asyncio.get_running_loop().run_in_executor(self._files_threads, function, *arguments)

    async def open(self) -> list[Job] | None:
        """Open folder and database and return the jobs; where that fails None, ``closed`` and the log say why."""
        path = self._settings.jobs_dir or default_jobs_dir()
        try:
            jobs = await self._in_database_thread(self._open, path)
        except (LaploraError, SQLAlchemyError, sqlite3.Error, OSError, ValueError) as error:
            if not isinstance(error, LaploraError):
                log_crash("the jobs folder could not be opened", error)
                error = JobsUnavailableError("the jobs folder cannot be opened: the server's log has the details")
            if str(error) != str(self.closed):
                files = {"files": error.names} if isinstance(error, ForeignFilesError) else {}
                shown = "".join(f", {name!r}" for name in files.get("files", ()))
                fields = {"event": "jobs_unavailable", "jobs_dir": str(path), **files}
                logger.error("jobs are not available: %s%s", error, shown, extra=fields)
            self.closed = JobsUnavailableError(str(error))
            return None
        self.closed = None
        queued = sum(not job.finished for job in jobs)
        logger.info("jobs folder", extra={"event": "jobs_folder", "jobs_dir": str(path), "queued": queued})
        return jobs

    def _open(self, path: Path) -> list[Job]:
        settings = self._settings
        with ExitStack() as undone:
            remote = RemoteUploads(settings.jobs_files_url) if settings.jobs_files_url else None
            folder = JobsFolder(path, shared=self.shared, remote=remote)
            undone.callback(folder.close)
            if settings.jobs_url is None:
                tables = JobTables(Database.in_file(folder.database))
            else:
                url = settings.jobs_url.get_secret_value()
                tables = JobTables(Database.at_url(url, settings.jobs_password_file, timeout_s=settings.jobs_timeout_s))
            undone.callback(tables.close)
            self.living = tables.claims.hear(self.server, alone=not self.shared, lease_s=settings.job_lease_s)
            jobs = tables.reads.jobs()
            folder.discard_others({job.id for job in jobs if not job.finished or job.keeps_rows})
            for job in jobs:
                # Only a cancelled job's upload is removed before its end is on disk.
                if remote is None and not self.shared and not job.finished and not folder.inputs(job.id).exists():
                    job.status, job.finished_at, job.keeps_rows = "cancelled", time.time(), False
                    tables.end(job.number, "cancelled", finished_at=job.finished_at)
            undone.pop_all()
        self.folder, self.tables = folder, tables
        return jobs

    async def close(self) -> None:
        """Let another process have the folder, and other servers the jobs."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
        if self.closed is None:
            self.closed = JobsUnavailableError("the jobs folder is closed")
            with suppress(*STORAGE_ERRORS):
                await self.in_database(self.tables.claims.leave, self.server)
            with suppress(*STORAGE_ERRORS):
                await self.in_database(self.tables.close)
            await self.in_files(self.folder.close)
        self._database_thread.shutdown(wait=False)
        self._files_threads.shutdown(wait=False)

    def sweep_soon(self) -> None:
        """Remove from the disk what is no job's any more, a little at a time, so that nothing waits long for it."""
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(), name="laplora-jobs-sweeper")

    async def forget_copy(self, job_id: str) -> None:
        """Remove the copy of an upload that another server may need, where there is an original."""
        if self.closed is None:
            await self.in_files(self.folder.forget_copy, job_id)

    async def discard(self, job_ids: Sequence[str]) -> None:
        """Remove uploads that the database lists for it: files now, objects of a store by and by, which may be away."""
        if self.folder.remote is None:
            with suppress(*STORAGE_ERRORS, OSError):
                await self._discard(job_ids)
        for job_id in job_ids:
            await self.forget_copy(job_id)
        self.sweep_soon()

    async def _discard(self, job_ids: Sequence[str]) -> None:
        gone: list[str] = []
        try:
            for job_id in job_ids:
                await self.in_files(self.folder.discard, job_id)
                gone.append(job_id)
        finally:
            if gone:
                await self.in_database(self.tables.discards.done, gone)

    async def _sweep(self) -> None:
        try:
            while self.closed is None and await self.in_database(self.tables.reads.sweep):
                pass
            if self.closed is None:
                await self._discard(await self.in_database(self.tables.discards.due))
        except STORAGE_ERRORS:
            return  # tried again by and by
        except Exception as error:
            log_crash("what is left of jobs could not be removed", error)


def _once_more(function: Callable[..., T], *arguments: Any) -> T:
    """Return what the function returns; where the connection was lost, what it returns the second time."""
    try:
        return function(*arguments)
    except ConnectionLostError:
        return function(*arguments)
