"""Uploads that become jobs: each has a place in the quota, is checked as it comes, and is a job once it is whole."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from laplora.answers.labels import LabelNames
from laplora.decisions.thresholds import ReviewRule
from service.errors import BodyTooLargeError, IdempotencyConflictError
from service.jobs.intake.upload import Upload, new_content
from service.jobs.store.ledger import Ledger
from service.jobs.store.numbers import row_bytes
from service.jobs.store.records import About, ArtifactVersion, Job, JobOptions, ReadRow
from service.jobs.store.tasks import whole
from service.settings import Settings
from service.threads import OneEach


class Taking:
    """Takes uploads in. Belongs to the event loop.

    Args:
        taken: called once a job is on disk, even where its client is gone by then.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, read_uploaded: ReadRow, taken: Callable[[], Awaitable[None]]
    ) -> None:
        self._settings, self._ledger, self._read_uploaded, self._taken = settings, ledger, read_uploaded, taken
        self._quota = ledger.memory.quota
        #: By owner and idempotency key: uploads that have not ended.
        self._uploads: set[object] = set()
        self._checker_threads = ThreadPoolExecutor(2, thread_name_prefix="laplora-jobs-upload")
        #: One thread for each caller at most.
        self._checkers = OneEach(self._checker_threads)

    def close(self) -> None:
        self._checker_threads.shutdown(wait=False, cancel_futures=True)

    def repeated(
        self,
        owner: str,
        key: str | None,
        artifact: str | None,
        options: JobOptions,
        *,
        keep_rows: bool,
        announced_bytes: int,
    ) -> Job | None:
        """Return the job that this caller uploaded under this key, if there is one. ``JobBoard.fresh`` comes before.

        Whether it is of the same rows ``check_same`` says.

        Raises:
            JobsUnavailableError: the folder is not open.
            IdempotencyConflictError: it is being uploaded, or was uploaded with other options.
            TooManyJobsError: there is none, and no room for one.
        """
        if (owner, key) in self._uploads:
            raise IdempotencyConflictError("an upload with this Idempotency-Key has not ended: try again after it")
        for job in self._ledger.open_jobs().values():
            if key is not None and (job.owner, job.idempotency_key) == (owner, key):
                same = (job.about.options, job.about.keep_rows) == (options, keep_rows)
                if not same or artifact not in (None, job.about.artifact.name):
                    raise IdempotencyConflictError(
                        "a job with this Idempotency-Key has other options: send another key for another job",
                        field="idempotency-key",
                    )
                return job
        self._quota.check_room(owner, announced_bytes)
        return None

    async def check_same(self, job: Job, body: AsyncIterator[bytes]) -> None:
        """Check that an upload is that of a job, sent once more.

        Raises:
            BodyTooLargeError: it is larger than any job's.
            IdempotencyConflictError: it has other rows.
        """
        content, received = new_content(), 0
        async for chunk in body:
            received += len(chunk)
            self._quota.check_size(received)
            content.update(chunk)
        if job.about.content != content.hexdigest():
            raise IdempotencyConflictError(
                "a job with this Idempotency-Key has other rows: send another key for another job",
                field="idempotency-key",
            )

    async def take(
        self,
        body: AsyncIterator[bytes],
        *,
        owner: str,
        key: str | None,
        artifact: ArtifactVersion,
        labels: LabelNames,
        rule: ReviewRule,
        options: JobOptions,
        methods: Collection[str],
        keep_rows: bool,
        template_fields: tuple[str, ...],
        tokens_of: Callable[[dict[str, Any]], int],
        awaited: Callable[[Coroutine[Any, Any, None]], Awaitable[None]],
    ) -> Job:
        """Return the job of an upload, on disk and queued; nothing of it stays if this fails or is cancelled.

        Call ``repeated`` before, without awaiting anything in between.

        Args:
            methods: that a row with a label is measured by.
            awaited: runs what is left to do once the body has come, and cancels it when the client goes away.

        Raises:
            LaploraError: as ``Upload`` and ``Quota.grow``.
        """
        job_id, ledger = uuid.uuid4().hex, self._ledger
        place: object = job_id if key is None else (owner, key)
        self._uploads.add(place)
        self._quota.hold(job_id, owner, 0)
        received = 0
        in_checker = partial(self._checkers.run, owner)
        upload: Upload | None = None
        try:
            folder = ledger.disk.folder
            begin = partial(Upload, folder.upload(job_id), self._settings, self._read_uploaded)
            room = row_bytes(labels, methods, keep_rows=keep_rows)
            make = partial(begin, tokens_of=tokens_of, labels=labels, template_fields=template_fields, row_bytes=room)
            upload = await whole(in_checker(make))
            async for chunk in body:
                received += len(chunk)
                try:
                    self._quota.grow(job_id, received, upload.answer_bytes)
                except BodyTooLargeError:
                    upload.raise_refused()
                    raise
                await whole(in_checker(partial(upload.feed, chunk)), hurry=upload.stop)
            await awaited(whole(in_checker(upload.finish), hurry=upload.stop))
            self._quota.grow(job_id, max(received, upload.size_bytes), upload.answer_bytes)
            about = About(
                artifact=artifact,
                labels=labels.names,
                several=labels.several,
                rule=rule.model_dump(),
                options=options,
                rows=upload.rows,
                labelled=upload.labelled,
                answer_bytes=upload.answer_bytes,
                tokens=upload.tokens,
                created_at=time.time(),
                keep_rows=keep_rows,
                upload_bytes=upload.size_bytes,
                fields=template_fields,
                columns=tuple(upload.columns),
                content=upload.content.hexdigest(),
            )
            job = Job(job_id, owner, key, about)
            await whole(ledger.add(job))
        finally:
            self._uploads.discard(place)
            if upload is not None:
                upload.close()
            if job_id not in ledger.jobs:
                self._quota.release(job_id)
                await whole(ledger.disk.in_files(ledger.disk.folder.give_up, job_id))
            else:
                await whole(self._taken())
        return job
