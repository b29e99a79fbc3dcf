"""One job that has not ended: its chunks go through, or do not, and it ends.

Chunks go to disk in their order, each in one transaction; what one failed for undoes those read after it. What the
queue or the disk has no room for is tried again later. A row without an answer is left out and recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from service import errors
from service.artifacts.host import ArtifactHost
from service.errors import (
    ArtifactChangedError,
    ArtifactNotLoadedError,
    BatchTooLargeError,
    TooManyBadRowsError,
    UploadChangedError,
    error_content,
    kind_of,
)
from service.jobs.chunks import Chunk, RowError, pinned, score_chunk
from service.jobs.ledger import STORAGE_ERRORS, Ledger
from service.jobs.metrics import Measuring, in_words
from service.jobs.records import About, Job, Rows, ScoredRow, StoredStatus
from service.jobs.store import ClaimLostError
from service.jobs.waiting import Pauses, cancelled, whole
from service.scoring.scorer import Scorer
from service.settings import Settings
from service.telemetry.logs import log_crash, logger

#: Most rows of a chunk.
_CHUNK_ROWS = 256
#: For how much longer an artifact has to be absent before that is written down: what a kill may forget.
_ABSENCE_STEP_S = 60.0
#: A row that was alone at so many unclean ends is left out; a first one, with others beside it, is not counted.
_LONE_TRIES = 2
#: How often an upload that cannot be read for now is tried before another server is to have the job.
_READ_TRIES = 4


class UploadGoneError(UploadChangedError):
    """This server finds nothing where a job's upload should be."""


@dataclass(frozen=True)
class Means:
    """What every run works with; the last are called when another chunk may begin, a job ended, the server stops."""

    settings: Settings
    scorer: Scorer
    artifacts: ArtifactHost
    ledger: Ledger
    measuring: Measuring
    look: Callable[[], None]
    forget: Callable[[Job], None]
    stop: Callable[[], None]


@dataclass(eq=False)
class Run:
    """A job that has not ended, and what of it is under way.

    Attributes:
        rows, most_rows: of the next chunk at most, and of any.
        bad: by number, the codes of rows without an answer; not all of them are on disk yet.
        chunks: of the next rows, in order; under_way: what the disk has of them, lone tries by their rows.
        alone: the last chunk ahead got no room, so the next one waits for those before it.
        not_before, absent_at: ``time.monotonic`` of the next try, and of the last one without the artifact.
        next_row, next_offset: where the next chunk begins; ahead of what is on disk by the chunks under way.
        unread: why its next chunk cannot be read; it fails once those before it are over.
        ending: what the job ends with, once that is known.
        leaving: why this server cannot run it, while another may.
    """

    job: Job
    means: Means
    rows: int = _CHUNK_ROWS
    most_rows: int = _CHUNK_ROWS
    pauses: Pauses = field(default_factory=Pauses)
    bad: dict[int, str] = field(default_factory=dict)
    chunks: list[asyncio.Task[None]] = field(default_factory=list)
    under_way: dict[Rows, int] = field(default_factory=dict)
    finishing: asyncio.Task[None] | None = None
    alone: bool = False
    stopped: bool = False
    not_before: float = 0.0
    absent_at: float | None = None
    unread: Exception | None = None
    ending: tuple[StoredStatus, dict[str, Any]] | None = None
    leaving: Exception | None = None

    def __post_init__(self) -> None:
        """Leave out a row that was alone at several unclean ends."""
        job, row = self.job, self.job.rows_done
        self.next_row, self.next_offset = row, job.input_offset
        tries = job.begun.get((row, row + 1), 0)
        if tries >= _LONE_TRIES:
            fields = {"event": "job_row_given_up", "job": job.id, "row": row, "tries": tries}
            logger.error("a row of a job is left out: the server ended uncleanly whenever it ran", extra=fields)
            self._leave_out({row: errors.DeviceFaultError("the server ended uncleanly whenever this row ran")})
        self._go_on()

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """What is under way."""
        return {*self.chunks, *([] if self.finishing is None else [self.finishing])}

    @property
    def suspect(self) -> bool:
        """Whether its next row was perhaps under way when an earlier process ended uncleanly, and is tried alone."""
        return any(after > self.job.rows_done for _, after in self.job.begun)

    @property
    def ends(self) -> bool:
        """Whether nothing more of it is to begin here."""
        return self.finishing is not None or self.ending is not None or self.leaving is not None

    @property
    def has_more(self) -> bool:
        """Whether another chunk can be read, now or later."""
        return not (self.stopped or self.ends) and self.unread is None and self.next_row < self.job.about.rows

    @property
    def new_bad(self) -> dict[int, str]:
        """``bad`` without what has come to disk."""
        return {row: code for row, code in self.bad.items() if row >= self.job.rows_done}

    async def stop(self) -> None:
        """Let nothing more begin, and return once nothing is under way."""
        self.stopped = True
        await cancelled(self.tasks)

    async def requeue(self) -> None:
        """Let a stopped job wait for the next start of the server."""
        job, ledger = self.job, self.means.ledger
        ledger.stopped(job)
        if self.absent_at is not None and not job.finished:
            job.absent_s += time.monotonic() - self.absent_at
            await ledger.keep_absence(job)
        await self._not_begun(*self.under_way)

    def lost(self) -> None:
        """Let go of a job that is another server's by now, or has ended: nothing more of it begins here."""
        if not self.stopped:
            self.stopped = True
            for task in self.tasks:
                if task is not asyncio.current_task():
                    task.cancel()
            fields = {"event": "job_claim_lost", "job": self.job.id, "rows_done": self.job.rows_done}
            logger.warning("a job is another server's by now, or has ended", extra=fields)
            self.job.mine = False
            self.means.forget(self.job)

    # A chunk goes through

    def begin(self, chunk: Chunk) -> None:
        """Score the next chunk and keep its rows, behind the chunk before it."""
        self.next_row, self.next_offset = chunk.rows[1], chunk.end
        before = self.chunks[-1] if self.chunks else None
        self.chunks.append(asyncio.create_task(self._go_through(chunk, before), name="laplora-job"))

    async def _go_through(self, chunk: Chunk, before: asyncio.Task[None] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            scored, bad = await self._score(chunk)
            if before is not None:
                await asyncio.wait({before})
            await self._keep(chunk, scored, bad)
        except Exception as error:
            await self._not_begun(chunk.rows)
            if task in self.chunks:
                # Those read after this one begin where it ended: they are read anew.
                position = self.chunks.index(task)
                for later in self.chunks[position + 1 :]:
                    later.cancel()
                self.chunks = self.chunks[: position + 1]
                self.next_row, self.next_offset, self.unread = chunk.rows[0], chunk.begin, None
                await self._take_failure(chunk, error, ahead=position > 0)
        finally:
            if task in self.chunks:
                self.chunks.remove(task)
            if not self.stopped:
                self._go_on()

    def _go_on(self) -> None:
        if self.unread is not None and not self.chunks and not self.ends:
            self._cannot(self.unread)
        over = self.ends or self.job.rows_done == self.job.about.rows
        if over and self.finishing is None and not self.chunks:
            self.finishing = asyncio.create_task(self._end(), name="laplora-job-end")
        self.means.look()

    async def _score(self, chunk: Chunk) -> tuple[list[ScoredRow], dict[int, Exception]]:
        job, ledger = self.job, self.means.ledger
        async with pinned(self.means.artifacts, job.about.artifact) as predictor:
            self.absent_at, job.absent_s = None, 0.0
            ledger.runs(job)
            if not chunk.items:
                return [], {}
            self.under_way[chunk.rows] = job.begun.get(chunk.rows, 0) + self.suspect
            await ledger.keep_begun(job, self.under_way)
            return await score_chunk(self.means.scorer, predictor, job.id, job.about, chunk)

    async def _keep(self, chunk: Chunk, scored: list[ScoredRow], bad: Mapping[int, Exception]) -> None:
        job, about, ledger = self.job, self.job.about, self.means.ledger
        self._leave_out(bad)
        if self.ending is not None:
            return
        sums = job.sums
        if scored:
            plus = partial(sums.plus, scored, labels=about.label_names, bins=about.options.bins)
            sums = await ledger.on_disk(plus)
        codes = {**chunk.bad, **{row: kind_of(error).code for row, error in bad.items()}}
        await whole(ledger.keep_rows(job, chunk, scored, codes, sums=sums))
        self.under_way.pop(chunk.rows, None)
        self.bad = self.new_bad
        self.rows, self.alone = min(self.most_rows, 2 * self.rows), False
        self.pauses.over()

    # A chunk does not go through

    async def unreadable(self, error: Exception) -> None:
        """Let the job wait for what its next chunk could not be read for, or fail once those before it are over."""
        if not self.stopped:
            other = self.means.ledger.shared and self.pauses.tried >= _READ_TRIES
            if self.pauses.waits_out(error) and not other:
                await self._pause(error)
            else:
                self.unread = error
            self._go_on()

    async def _not_begun(self, *rows: Rows) -> None:
        """Keep that rows are not under way any more: the process lives, so a later end of it is not about them."""
        gone = [some for some in rows if some in self.under_way]
        if gone and self.means.scorer.device.health.fault is None:
            for some in gone:
                del self.under_way[some]
            with suppress(*STORAGE_ERRORS, ClaimLostError):
                await whole(self.means.ledger.keep_begun(self.job, self.under_way))

    async def _take_failure(self, chunk: Chunk, error: Exception, *, ahead: bool) -> None:
        if isinstance(error, errors.DrainingError):
            self.means.stop()
            return
        if isinstance(error, ClaimLostError):
            self.lost()
            return
        cause, row = (error.cause, error.row) if isinstance(error, RowError) else (error, None)
        half, few = max(1, len(chunk.items) // 2), len(chunk.items) <= 1
        if isinstance(cause, BatchTooLargeError) and not few:
            self.rows = self.most_rows = half
        elif self.pauses.waits_out(cause):
            if ahead:
                self.alone = True
                return
            if isinstance(cause, errors.QueueFullError):
                self.rows = half
            await self._pause(cause)
        elif not isinstance(error, RowError | BatchTooLargeError):
            self._cannot(error)
        elif row is None and not few:
            self.rows = half
        else:
            self._leave_out({chunk.items[0].row if row is None else row: cause})

    async def _pause(self, error: Exception) -> None:
        job, now, known_s = self.job, time.monotonic(), self.job.absent_s
        if isinstance(error, ArtifactNotLoadedError):
            if self.means.ledger.shared:
                self._cannot(error)
                return
            limit_s = self.means.settings.job_wait_s
            job.absent_s += 0.0 if self.absent_at is None else now - self.absent_at
            self.absent_at = now
            if job.absent_s >= limit_s:
                name = job.about.artifact.name
                waited = f"artifact {name!r} was not loaded for job_wait_s ({limit_s:g} s)"
                self._fail(ArtifactNotLoadedError(f"{waited}: load it and upload the job again"))
                return
        else:
            self.absent_at = None
        self.means.ledger.pause(job, error)
        self.not_before = now + self.pauses.next_s()
        if known_s // _ABSENCE_STEP_S != job.absent_s // _ABSENCE_STEP_S:
            await self.means.ledger.keep_absence(job)

    def _leave_out(self, bad: Mapping[int, Exception]) -> None:
        """Leave out rows that have no answer, or let the job fail where there are too many."""
        limit = self.means.settings.max_job_bad_rows
        for row, error in bad.items():
            self.bad[row] = kind_of(error).code
            if kind_of(error).status == 500:
                log_crash("a row of a job could not be scored", error)
        counts = self.job.bad_counts + Counter(self.new_bad.values())
        if bad and counts.total() > limit:
            error = TooManyBadRowsError(
                f"{counts.total()} rows could not be scored ({in_words(counts)}), max_job_bad_rows is {limit}: the "
                "job lists their lines, change or leave out those",
                field=f"lines.{min(bad) + 1}",
                limit=limit,
                got=counts.total(),
            )
            self._fail(error)

    # The job ends

    def _cannot(self, error: Exception) -> None:
        """Let another server have the job where one may do better; else it fails."""
        kinds = (ArtifactChangedError, ArtifactNotLoadedError, UploadGoneError, *STORAGE_ERRORS)
        if self.means.ledger.shared and isinstance(error, kinds):
            self.leaving = error
            self._drop_chunks()
        else:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if kind_of(error).status == 500:
            log_crash("a job failed", error)
        self.ending = "failed", {"error": error_content(error, "")["error"]}
        self._drop_chunks()

    def _drop_chunks(self) -> None:
        for chunk in self.chunks:
            if chunk is not asyncio.current_task():
                chunk.cancel()

    async def _leave(self, error: Exception) -> bool:
        """Return whether the job is left to another server: not where none came for ``job_wait_s``, and it fails."""
        job, ledger, limit_s = self.job, self.means.ledger, self.means.settings.job_wait_s
        needed = _needed(error, job.about)
        if await ledger.left_s(job) >= limit_s:
            self._fail(type(error)(f"for job_wait_s ({limit_s:g} s) there was no {needed}: upload the job again"))
            return False
        await self._not_begun(*self.under_way)
        await whole(ledger.leave(job, error, f"waits for a {needed}"))
        return True

    async def _end(self) -> None:
        job, ledger, pauses = self.job, self.means.ledger, Pauses()
        while True:
            try:
                if self.leaving is not None and self.ending is None and await self._leave(self.leaving):
                    break
                if self.ending is None:
                    self.ending = "done", {"result": await self.means.measuring.result(job)}
                status, more = self.ending
                await whole(ledger.end(job, status, bad=self.new_bad, **more))
                break
            except ClaimLostError:
                self.lost()
                return
            except Exception as error:
                if pauses.waits_out(error):
                    ledger.pause(job, error)
                    await asyncio.sleep(pauses.next_s())
                elif self.ending is not None and self.ending[0] == "failed":
                    ledger.lose(job, error)
                    break
                else:
                    self._fail(error)
        self.means.forget(job)


def _needed(error: Exception, about: About) -> str:
    """Return what a server has to be that runs a job which this one cannot."""
    if isinstance(error, UploadGoneError):
        return "server that has its upload"
    if isinstance(error, ArtifactChangedError | ArtifactNotLoadedError):
        return f"server that has loaded artifact {about.artifact.name!r} of digest {about.artifact.digest}"
    return f"server that can read its upload ({error})"
