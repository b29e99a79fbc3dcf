"""The large evaluations of one server: taken in, listed, cancelled, removed. What the routes and the application call.

Belongs to the event loop. Where the jobs folder cannot be had, the server serves without jobs and tries again. Where
servers share the jobs, each says again and again that it lives, and claims its share of those that nobody runs.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from service.artifacts.host import ArtifactHost
from service.errors import BodyTooLargeError, IdempotencyConflictError, JobNotFoundError
from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.evaluate import MeasureOptions
from service.jobs.ledger import STORAGE_ERRORS, Ledger
from service.jobs.records import About, Job
from service.jobs.runner import Runner
from service.jobs.store import ClaimLostError
from service.jobs.upload import Upload
from service.jobs.waiting import cancelled, whole
from service.scoring.labels import LabelNames
from service.scoring.scorer import Scorer
from service.settings import Settings
from service.telemetry.logs import log_crash
from service.telemetry.metrics import Metrics
from service.threads import OneEach

#: How often the folder is tried again, and finished jobs are looked through for those whose time is over.
_KEEPING_S = 5.0
#: How often a table that is unpacked is measured.
_GROWING_S = 0.25


class JobBoard:
    """The jobs that one server knows of, and those that it runs."""

    def __init__(self, settings: Settings, scorer: Scorer, artifacts: ArtifactHost, metrics: Metrics) -> None:
        self._settings = settings
        self.ledger = Ledger(settings, metrics)
        self.quota = self.ledger.quota
        self._runner = Runner(settings, scorer, artifacts, self.ledger)
        #: By owner and idempotency key: uploads that have not ended.
        self._uploads: set[object] = set()
        self._checker_threads = ThreadPoolExecutor(2, thread_name_prefix="laplora-jobs-upload")
        #: One thread for each caller at most.
        self._checkers = OneEach(self._checker_threads)
        self._keeper: asyncio.Task[None] | None = None
        self.draining = False
        # Several times within a lease, so that one that takes long costs no job.
        self._keeping_s = min(_KEEPING_S, settings.job_lease_s / 5) if self.ledger.shared else _KEEPING_S

    # Life

    async def open(self) -> None:
        """Open the folder, go on where the last server stopped, and look after the folder from now on."""
        await self._open()
        self._keeper = asyncio.create_task(self._keep_up(), name="laplora-jobs-keeper")

    def drain(self) -> None:
        """Stop what runs after its last whole chunk, to go on at the next start; end the streams of events."""
        self.draining = True
        self._runner.stop()
        self.ledger.tell_all()

    async def close(self) -> None:
        """Drain, and let another process have the folder."""
        self.drain()
        await cancelled([self._keeper])
        await self._runner.wait_closed()
        await self.ledger.close()
        self._checker_threads.shutdown(wait=False, cancel_futures=True)

    async def _open(self) -> None:
        await self.ledger.open()
        if self.ledger.closed is None:
            await self._claim()

    async def _claim(self) -> None:
        with suppress(*STORAGE_ERRORS):
            await self.ledger.claim()
        self._runner.wake()

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(self._keeping_s)
            try:
                if self.ledger.closed is not None:
                    await self._open()
                    continue
                await self.fresh()
                if not self.draining:
                    await self._claim()
                    await self._share()
                for job in [job for job in self.ledger.jobs.values() if job.cancelling]:
                    await self.cancel(job)
                await self._remove_old()
                self.ledger.sweep_soon()
            except STORAGE_ERRORS:
                continue
            except Exception as error:
                log_crash("the jobs folder could not be kept up", error)

    async def fresh(self) -> None:
        """Learn what other servers did, where some share the jobs; call before jobs are looked at."""
        for job in await self.ledger.refresh():
            await self._runner.drop(job)

    async def _share(self) -> None:
        """Let other servers have the jobs that are more than this one's share."""
        mine = sum(job.mine and job.shared_out for job in self.ledger.jobs.values())
        for job in self._runner.idle(max(0, mine - self.ledger.share)):
            await self._runner.give_up(job)
            await self.ledger.release(job)

    async def _remove_old(self) -> None:
        settings = self._settings
        finished = [job for job in self.ledger.jobs.values() if job.finished]
        oldest_s = time.time() - settings.job_keep_s
        gone = [job for job in finished if job.finished_at is not None and job.finished_at < oldest_s]
        kept = [job for job in finished if job not in gone]
        bytes_of: Counter[str] = Counter()
        for job in kept:
            bytes_of[job.owner] += job.disk_bytes if job.keeps_rows else 0
        # Beyond a limit whoever has most of it loses the oldest, so that no caller can push out another's.
        while kept:
            if len(self.ledger.jobs) - len(gone) > settings.max_jobs:
                most = Counter(job.owner for job in kept)
            elif bytes_of.total() > settings.max_kept_job_bytes:
                most = bytes_of
            else:
                break
            oldest = min(kept, key=lambda job: (-most[job.owner], job.number))
            kept.remove(oldest)
            gone.append(oldest)
            bytes_of[oldest.owner] -= oldest.disk_bytes if oldest.keeps_rows else 0
        if gone:
            await self.ledger.remove(gone)

    def _open_jobs(self) -> dict[str, Job]:
        if self.ledger.closed is not None:
            raise self.ledger.closed
        return self.ledger.jobs

    # Jobs

    def jobs_of(self, owner: str | None) -> list[Job]:
        """Return one caller's jobs, or everybody's, the newest first. Call ``fresh`` before; so of ``job``, ``known``.

        Raises:
            JobsUnavailableError: the folder is not open; so do ``job`` and ``known``.
        """
        return [job for job in reversed(self._open_jobs().values()) if owner in (None, job.owner)]

    def job(self, job_id: str, owner: str | None) -> Job:
        """Return a job.

        Raises:
            JobNotFoundError: none of this id, or not this owner's; None owns everybody's.
        """
        job = self._open_jobs().get(job_id)
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
            self.ledger.pause(job, error)
            raise
        job.cancelling = False

    # Uploads

    def known(
        self, owner: str, key: str | None, artifact: str | None, options: MeasureOptions, *, announced_bytes: int
    ) -> Job | None:
        """Return the job that this caller uploaded under this key, if there is one.

        Raises:
            IdempotencyConflictError: it is being uploaded, or was uploaded with other options.
            TooManyJobsError: there is none, and no room for one.
        """
        if (owner, key) in self._uploads:
            raise IdempotencyConflictError("an upload with this Idempotency-Key has not ended: try again after it")
        for job in self._open_jobs().values():
            if key is not None and (job.owner, job.idempotency_key) == (owner, key):
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
        labels: LabelNames,
        options: MeasureOptions,
        keep_rows: bool,
        template_fields: tuple[str, ...],
        tokens_of: Callable[[dict[str, Any]], int],
        awaited: Callable[[Coroutine[Any, Any, None]], Awaitable[None]],
    ) -> Job:
        """Return the job of an upload, on disk and queued; nothing of it stays if this fails or is cancelled.

        Call ``known`` before, without awaiting anything in between.

        Args:
            awaited: runs what is left to do once the body has come, and cancels it when the client goes away.

        Raises:
            LaploraError: as ``Upload`` and ``Quota.grow``.
        """
        job_id, ledger = uuid.uuid4().hex, self.ledger
        place: object = job_id if key is None else (owner, key)
        self._uploads.add(place)
        self.quota.hold(job_id, owner, 0)
        received = 0
        in_checker = partial(self._checkers.run, owner)
        upload: Upload | None = None
        try:
            folder = ledger.folder
            begin = partial(Upload, folder.upload(job_id), folder.received(job_id), self._settings)
            make = partial(begin, tokens_of=tokens_of, labels=labels, template_fields=template_fields)
            upload = await whole(in_checker(make))
            async for chunk in body:
                received += len(chunk)
                try:
                    self.quota.grow(job_id, received)
                except BodyTooLargeError:
                    upload.raise_refused()
                    raise
                await whole(in_checker(partial(upload.feed, chunk)), hurry=upload.stop)
            await awaited(self._finish(job_id, owner, upload, received))
            about = About(
                artifact=artifact,
                labels=labels.names,
                several=labels.several,
                options=options,
                rows=upload.rows,
                tokens=upload.tokens,
                created_at=time.time(),
                keep_rows=keep_rows,
                upload_bytes=upload.size_bytes,
                fields=template_fields,
                columns=upload.columns.kinds,
            )
            job = Job(job_id, owner, key, about)
            await whole(ledger.add(job))
        finally:
            self._uploads.discard(place)
            if upload is not None:
                upload.close()
            if job_id not in ledger.jobs:
                self.quota.release(job_id)
                await whole(ledger.in_files(ledger.folder.discard, job_id))
            elif not self.draining:
                await whole(self._claim())
        with suppress(*STORAGE_ERRORS):
            await self._remove_old()
        return job

    async def _finish(self, job_id: str, owner: str, upload: Upload, received: int) -> None:
        """Check what is left of an upload: what was taken for so many bytes of a table may be many more as lines."""
        task = asyncio.ensure_future(whole(self._checkers.run(owner, upload.finish), hurry=upload.stop))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_GROWING_S)
                if not task.done():
                    self.quota.grow(job_id, max(received, upload.size_bytes))
            task.result()
            self.quota.grow(job_id, max(received, upload.size_bytes))
        finally:
            await cancelled([task])
