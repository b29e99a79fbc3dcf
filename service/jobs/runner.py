"""Scores jobs in the background, chunk by chunk: callers take turns, and so do one caller's jobs.

Two chunks are under way at any time, of one job or of two: while the device is at one, the other is read, tokenised and
queued behind it, so that the device goes from one to the next. No more artifacts than that are held. Chunks of one job
go to disk in their order, each in one transaction; what one failed for undoes those read after it.

What is under way is on disk before it runs. What was under way when a process ended uncleanly (a lost device, a kill)
is suspect: the next process tries those rows one by one, with no other chunk beside them, and leaves out a row that
was alone at several such ends. So no row can keep the server in a restart loop.

A job is one caller of the queue among the others, so that requests do not wait behind all of it. What the queue or the
disk has no room for is tried again later. A row without an answer is left out and recorded.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service.artifacts.host import ArtifactHost
from service.errors import (
    ArtifactNotLoadedError,
    BatchTooLargeError,
    DeviceFaultError,
    DrainingError,
    QueueFullError,
    TooManyBadRowsError,
    error_content,
    kind_of,
)
from service.jobs.chunks import Chunk, RowError, pinned, read_chunk, score_chunk
from service.jobs.measuring import Measuring
from service.jobs.pauses import Pauses
from service.jobs.records import Job, StoredStatus
from service.jobs.store import ScoredRow
from service.jobs.turns import Turns
from service.jobs.waiting import cancelled, whole
from service.scoring.scorer import Scorer
from service.settings import Settings
from service.telemetry.logs import log_crash, logger

if TYPE_CHECKING:
    from service.jobs.board import JobBoard

#: Chunks under way: one on the device, and one ahead of it.
_CHUNKS = 2
#: A chunk is as many rows as make two device batches, so that few batches are not full, and no more than this.
_CHUNK_BATCHES = 2
_CHUNK_ROWS = 256
#: For how much longer an artifact has to be absent before that is written down: what a kill may forget.
_ABSENCE_STEP_S = 60.0
#: A row that was alone at so many unclean ends is left out; a first one, with others beside it, is not counted.
_LONE_TRIES = 2


@dataclass(eq=False)
class _Run:
    """A job that has not ended, and what of it is under way.

    Attributes:
        next_row, next_offset: where the next chunk begins; ahead of what is on disk by the chunks under way.
        rows: of the next chunk at most; most_rows: that any can have.
        bad: by number, the codes of rows found to have no answer, which are not on disk yet.
        chunks: under way, in order.
        alone: the last chunk ahead found no room: the next one waits for those before it.
        not_before: ``time.monotonic`` seconds of the next try.
        suspect_before: rows of numbers below were perhaps under way when an earlier process ended uncleanly.
        absent_at: the same, of the last try that did not find the artifact loaded.
        kept_at: the same, when a chunk came to disk, since the last pause; 0 before.
        ending: the status and more that the job ends with, once that is known.
    """

    job: Job
    next_row: int
    next_offset: int
    rows: int = _CHUNK_ROWS
    most_rows: int = _CHUNK_ROWS
    pauses: Pauses = field(default_factory=Pauses)
    bad: dict[int, str] = field(default_factory=dict)
    chunks: list[asyncio.Task[None]] = field(default_factory=list)
    finishing: asyncio.Task[None] | None = None
    alone: bool = False
    dropped: bool = False
    suspect_before: int = 0
    not_before: float = 0.0
    absent_at: float | None = None
    kept_at: float = 0.0
    ending: tuple[StoredStatus, dict[str, Any]] | None = None

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """What is under way."""
        return {*self.chunks, *([] if self.finishing is None else [self.finishing])}

    @property
    def suspect(self) -> bool:
        """Whether its next row is tried alone."""
        return self.job.rows_done < self.suspect_before

    @property
    def has_more(self) -> bool:
        """Whether another chunk can be read, now or later."""
        ends = self.dropped or self.finishing is not None or self.ending is not None
        return not ends and self.next_row < self.job.about.rows

    @property
    def new_bad(self) -> dict[int, str]:
        """``bad`` without what has come to disk."""
        return {row: code for row, code in self.bad.items() if row >= self.job.rows_done}


class Runner:
    """Runs the jobs of a board. Belongs to the event loop."""

    def __init__(self, settings: Settings, scorer: Scorer, artifacts: ArtifactHost, board: JobBoard) -> None:
        self._settings = settings
        self._scorer = scorer
        self._artifacts = artifacts
        self._board = board
        self._measuring = Measuring(board)
        self._runs: dict[str, _Run] = {}
        self._callers, self._jobs = Turns(), Turns()
        self._woken = asyncio.Event()
        self._begins: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._stopped = False

    def wake(self) -> None:
        """Take up the jobs that wait."""
        if self._stopped:
            return
        waiting = self._board.waiting()
        for job in waiting:
            if job.id not in self._runs:
                run = self._runs[job.id] = _Run(job, job.rows_done, job.input_offset)
                self._suspect(run)
                if not run.has_more:
                    self._finish(run)
        self._callers.meet({run.job.owner for run in self._runs.values()})
        self._jobs.meet(self._runs)
        self._woken.set()
        if self._begins is None and self._runs:
            self._begins = asyncio.create_task(self._begin_chunks(), name="laplora-jobs")

    def _suspect(self, run: _Run) -> None:
        job = run.job
        run.suspect_before = max((after for _, after in job.begun), default=0)
        row = job.rows_done
        tries = job.begun.get((row, row + 1), 0)
        if tries < _LONE_TRIES:
            return
        fields = {"event": "job_row_given_up", "job": job.id, "row": row, "tries": tries}
        logger.error("a row of a job is left out: the server ended uncleanly whenever it ran", extra=fields)
        try:
            self._found_bad(run, {row: DeviceFaultError("the server ended uncleanly whenever this row ran")})
        except TooManyBadRowsError as too_many:
            self._fail(run, too_many)

    def stop(self) -> None:
        """Stop every job at its last whole chunk; what of them waits for the device is dropped."""
        self._stopped = True
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="laplora-jobs-close")

    async def _close(self) -> None:
        await cancelled([self._begins])
        runs = list(self._runs.values())
        await cancelled({task for run in runs for task in run.tasks})
        for run in runs:
            self._board.stopped(run.job)
            if run.absent_at is not None and not run.job.finished:
                run.job.absent_s += time.monotonic() - run.absent_at
                await self._board.keep_absence(run.job)
        if runs and self._scorer.health.fault is None:
            await self._board.none_begun([run.job for run in runs])

    async def wait_closed(self) -> None:
        """Return once nothing of :meth:`stop` is left to do."""
        if self._closing is not None:
            await self._closing

    async def drop(self, job: Job) -> None:
        """Stop one job, if it runs; return once nothing of it does."""
        run = self._runs.get(job.id)
        if run is not None:
            run.dropped = True
            await cancelled(run.tasks)
            self._forget(run)

    def _forget(self, run: _Run) -> None:
        self._runs.pop(run.job.id, None)
        run.job.pace.clear()
        self.wake()

    # Chunks begin

    async def _begin_chunks(self) -> None:
        while True:
            try:
                self._woken.clear()
                now = time.monotonic()
                run = self._next(now)
                if run is not None:
                    await self._begin_chunk(run)
                    continue
                # Those whose time has come wait for a chunk to end, which wakes this.
                waits = [run.not_before for run in self._runs.values() if run.has_more and run.not_before > now]
                wait_s = max(0.0, min(waits, default=math.inf) - time.monotonic())
                try:
                    async with asyncio.timeout(None if self._busy or math.isinf(wait_s) else wait_s):
                        await self._woken.wait()
                except TimeoutError:
                    continue
            except Exception as error:
                log_crash("jobs could not go on", error)
                await asyncio.sleep(1.0)

    @property
    def _busy(self) -> bool:
        under_way = [run for run in self._runs.values() if run.chunks]
        return sum(len(run.chunks) for run in under_way) >= _CHUNKS or any(run.suspect for run in under_way)

    def _next(self, now: float) -> _Run | None:
        """Return the job whose turn it is to begin a chunk, None if none can."""
        ready: dict[str, dict[str, _Run]] = {}
        if not self._busy:
            for job_id, run in self._runs.items():
                if run.has_more and run.not_before <= now and not (run.alone and run.chunks):
                    ready.setdefault(run.job.owner, {})[job_id] = run
        if not ready:
            return None
        caller = self._callers.next(ready)
        job_id = self._jobs.next(ready[caller])
        if ready[caller][job_id].suspect and any(run.chunks for run in self._runs.values()):
            return None
        self._callers.take(caller)
        self._jobs.take(job_id)
        return ready[caller][job_id]

    async def _begin_chunk(self, run: _Run) -> None:
        job, board = run.job, self._board
        rows = 1 if run.suspect else min(run.rows, self._batch_rows(job), job.about.rows - run.next_row)
        first, offset = run.next_row, run.next_offset
        try:
            chunk = await board.on_disk_thread(
                lambda: read_chunk(
                    board.folder.inputs(job.id),
                    job.about.labels,
                    first=first,
                    offset=offset,
                    rows=rows,
                    most_bytes=self._settings.max_body_bytes,
                    bad=run.bad,
                )
            )
        except Exception as error:
            if not run.dropped:
                self._fail(run, error)
                self._go_on(run)
            return
        # While it was read the job may have been cancelled, or a chunk before it failed.
        if not run.has_more or (run.next_row, run.next_offset) != (first, offset):
            return
        run.next_row, run.next_offset = first + chunk.count, chunk.end
        before = run.chunks[-1] if run.chunks else None
        task = asyncio.create_task(self._go_through(run, chunk, before), name="laplora-job")
        run.chunks.append(task)

    def _batch_rows(self, job: Job) -> int:
        tokens_each = max(1.0, job.about.tokens / job.about.rows)
        return max(1, math.floor(_CHUNK_BATCHES * self._scorer.batch_tokens / tokens_each))

    # A chunk goes through, or does not

    async def _go_through(self, run: _Run, chunk: Chunk, before: asyncio.Task[None] | None) -> None:
        task, begun = asyncio.current_task(), time.monotonic()
        assert task is not None
        try:
            scored, bad = await self._score(run, chunk)
            if before is not None:
                await asyncio.wait({before})
            await self._keep(run, chunk, scored, bad, begun)
        except Exception as error:
            if self._scorer.health.fault is None:
                await self._board.not_begun(run.job, chunk)
            if task in run.chunks:
                # Those read after this one begin where it ended: they are read anew.
                position = run.chunks.index(task)
                for later in run.chunks[position + 1 :]:
                    later.cancel()
                run.chunks = run.chunks[: position + 1]
                run.next_row, run.next_offset = chunk.first, chunk.begin
                self._take_failure(run, chunk, error, ahead=position > 0)
        finally:
            if task in run.chunks:
                run.chunks.remove(task)
            if not run.dropped and not self._stopped:
                self._go_on(run)

    def _go_on(self, run: _Run) -> None:
        over = run.ending is not None or run.job.rows_done == run.job.about.rows
        if over and run.finishing is None and not run.chunks:
            self._finish(run)
        self._woken.set()

    async def _score(self, run: _Run, chunk: Chunk) -> tuple[list[ScoredRow], dict[int, Exception]]:
        about = run.job.about
        async with pinned(self._artifacts, about.artifact.name, about.artifact.digest) as predictor:
            run.absent_at, run.job.absent_s = None, 0.0
            self._board.runs(run.job)
            if not chunk.inputs:
                return [], {}
            await self._board.begin(run.job, chunk, alone=run.suspect)
            return await score_chunk(self._scorer, predictor, run.job.id, about, chunk)

    async def _keep(
        self, run: _Run, chunk: Chunk, scored: list[ScoredRow], bad: Mapping[int, Exception], begun: float
    ) -> None:
        job, about = run.job, run.job.about
        if bad:
            self._found_bad(run, bad)
        sums = job.sums
        if scored:
            sums = await self._board.on_disk_thread(
                lambda: job.sums.plus(
                    [row.methods for row in scored],
                    [row.label for row in scored],
                    class_count=len(about.labels),
                    bins=about.options.bins,
                )
            )
        codes = {**chunk.bad, **{row: kind_of(error).code for row, error in bad.items()}}
        await whole(self._board.keep_rows(job, chunk, scored, codes, sums=sums))
        since, run.kept_at = run.kept_at or begun, time.monotonic()
        job.pace.append((chunk.count, run.kept_at - since))
        run.bad = run.new_bad
        run.rows, run.alone = min(run.most_rows, 2 * run.rows), False
        run.pauses.over()

    def _take_failure(self, run: _Run, chunk: Chunk, error: Exception, *, ahead: bool) -> None:
        if isinstance(error, DrainingError):
            self.stop()
            return
        cause = error.cause if isinstance(error, RowError) else error
        few = len(chunk.numbers) <= 1
        if isinstance(cause, BatchTooLargeError) and not few:
            run.rows = run.most_rows = max(1, len(chunk.numbers) // 2)
        elif run.pauses.waits_out(cause):
            if ahead:
                run.alone = True
                return
            if isinstance(cause, QueueFullError):
                run.rows = max(1, len(chunk.numbers) // 2)
            self._pause(run, cause)
        elif isinstance(error, RowError) or isinstance(cause, BatchTooLargeError):
            row = error.row if isinstance(error, RowError) else None
            if row is None and not few:
                run.rows = max(1, len(chunk.numbers) // 2)
                return
            try:
                self._found_bad(run, {chunk.numbers[0] if row is None else row: cause})
            except TooManyBadRowsError as too_many:
                self._fail(run, too_many)
        else:
            self._fail(run, error)

    def _pause(self, run: _Run, error: Exception) -> None:
        job, now = run.job, time.monotonic()
        run.kept_at = 0.0
        if not isinstance(error, ArtifactNotLoadedError):
            run.absent_at = None
        else:
            before, limit_s = job.absent_s, self._settings.job_wait_s
            job.absent_s += 0.0 if run.absent_at is None else now - run.absent_at
            run.absent_at = now
            if job.absent_s >= limit_s:
                self._fail(
                    run,
                    ArtifactNotLoadedError(
                        f"artifact {job.about.artifact.name!r} was not loaded for job_wait_s ({limit_s:g} s): load it "
                        "and upload the job again"
                    ),
                )
                return
            if before // _ABSENCE_STEP_S != job.absent_s // _ABSENCE_STEP_S:
                self._board.keep_absence_soon(job)
        self._board.pause(job, error)
        run.not_before = now + run.pauses.next_s()

    def _found_bad(self, run: _Run, bad: Mapping[int, Exception]) -> None:
        """Take in rows that have no answer.

        Raises:
            TooManyBadRowsError: they are more than a job may have.
        """
        job, limit = run.job, self._settings.max_job_bad_rows
        for row, error in bad.items():
            run.bad[row] = kind_of(error).code
            if kind_of(error).status == 500:
                log_crash("a row of a job could not be scored", error)
        counts = job.bad_counts + Counter(run.new_bad.values())
        if counts.total() > limit:
            raise TooManyBadRowsError(
                f"{counts.total()} rows could not be scored ({_in_words(counts)}), max_job_bad_rows is {limit}: the "
                "job lists their lines, change or leave out those",
                field=f"lines.{min(bad) + 1}",
                limit=limit,
                got=counts.total(),
            )

    # A job ends

    def _fail(self, run: _Run, error: Exception) -> None:
        if kind_of(error).status == 500:
            log_crash("a job failed", error)
        run.ending = "failed", {"error": error_content(error, "")["error"]}
        for chunk in run.chunks:
            if chunk is not asyncio.current_task():
                chunk.cancel()

    def _finish(self, run: _Run) -> None:
        run.finishing = asyncio.create_task(self._end(run), name="laplora-job-end")

    async def _end(self, run: _Run) -> None:
        job, pauses = run.job, Pauses()
        while True:
            try:
                if run.ending is None:
                    if job.sums.rows == 0:
                        ((first, _), *_) = await self._board.bad_rows(job)
                        counts = _in_words(job.bad_counts)
                        raise TooManyBadRowsError(f"no row could be scored ({counts})", field=f"lines.{first + 1}")
                    run.ending = "done", {"result": await self._measuring.result(job)}
                status, more = run.ending
                await whole(self._board.end(job, status, bad=run.new_bad, **more))
                break
            except Exception as error:
                if pauses.waits_out(error):
                    self._board.pause(job, error)
                    await asyncio.sleep(pauses.next_s())
                elif run.ending is not None and run.ending[0] == "failed":
                    self._board.lose(job, error)
                    break
                else:
                    self._fail(run, error)
        self._forget(run)


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{code}: {count}" for code, count in sorted(counts.items()))
