"""One job that has not ended: its chunks go through, or do not, and it ends.

Chunks go to disk in their order, each in one transaction; what one failed for undoes those read after it. If queue or
disk are full, it is tried again later. A row without an answer is dropped and recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial

from laplora.errors import UpstreamUnavailableError
from service import errors
from service.errors import ArtifactNotLoadedError, BatchTooLargeError, kind_of
from service.jobs.running.chunks import Chunk, RowError, pinned, score_chunk
from service.jobs.running.ending import Ending
from service.jobs.running.tools import Tools
from service.jobs.running.under_way import DroppedRows, UnderWay
from service.jobs.running.waiting import Absence, Pauses
from service.jobs.store.claims import ClaimLostError
from service.jobs.store.numbers import kept_rows
from service.jobs.store.records import Job, ScoredRow
from service.jobs.store.tasks import cancelled, whole
from service.telemetry.logs import logger

#: Most rows of a chunk.
_CHUNK_ROWS = 256
#: How often an upload that cannot be read for now is tried before another server is to have the job.
_READ_TRIES = 4
#: How often a lone row is tried again whose scorers were lost: others may have been why.
_LOST_TRIES = 1
#: How often, after pauses, a row is tried that the model elsewhere has no answer to while it answers others.
_UPSTREAM_TRIES = 3
#: Parts in which a chunk whose scorers were lost is gone through, and then the part that loses more. Each loss costs
#: scorers, and a part that goes through costs nothing: so many small parts, and not halves.
_PARTS = 16


class Run:
    """A job that has not ended, and what of it is under way.

    Attributes:
        rows, most_rows: of the next chunk at most, and of any.
        chunks: of the next rows, in order; finishing: the job's end.
        alone: the last chunk ahead got no room, so the next one waits for those before it.
        losses: how often scorers were lost with the next row alone.
        unanswered: by row, how often the model elsewhere had no answer to it.
        careful: parts in which a row has lost scorers, the smaller ones last: the row before which each ends, and the
            most rows of a chunk until there. Chunks go one by one meanwhile.
        not_before: ``time.monotonic`` of the next try.
        next_row, next_offset: where the next chunk begins; ahead of what is on disk by the chunks under way.
        unread: why its next chunk cannot be read; it fails once those before it are over.
    """

    def __init__(self, job: Job, tools: Tools) -> None:
        self.job, self.tools = job, tools
        self.rows = self.most_rows = _CHUNK_ROWS
        self.pauses = Pauses(tools.settings.job_pause_s)
        self.chunks: list[asyncio.Task[None]] = []
        self.finishing: asyncio.Task[None] | None = None
        self.alone = self.stopped = False
        self.losses, self.unanswered = 0, Counter[int]()
        self.careful: list[tuple[int, int]] = []
        self.not_before = 0.0
        self.unread: Exception | None = None
        self.ending, self.absence = Ending(job, tools), Absence(job, tools)
        self.under_way, self.dropped = UnderWay(job, tools), DroppedRows(job, tools.settings.max_job_bad_rows)
        self.next_row, self.next_offset = job.rows_done, job.input_offset
        self._leave_out(self.under_way.given_up)
        self._go_on()

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        return {*self.chunks, *([] if self.finishing is None else [self.finishing])}

    @property
    def ends(self) -> bool:
        """Whether nothing more of it is to begin here."""
        return self.finishing is not None or self.ending.decided

    @property
    def has_more(self) -> bool:
        """Whether another chunk can be read, now or later."""
        return not (self.stopped or self.ends) and self.unread is None and self.next_row < self.job.about.rows

    async def stop(self) -> None:
        """Let nothing more begin, and return once nothing is under way."""
        self.stopped = True
        await cancelled(self.tasks)

    async def requeue(self) -> None:
        """Let a stopped job wait for the next start of the server."""
        job, ledger = self.job, self.tools.ledger
        await ledger.stopped(job)
        await self.absence.stop()
        await self.under_way.stop()

    async def lost(self) -> None:
        """Let go of a job that is another server's by now, or has ended: nothing more of it begins here."""
        if not self.stopped:
            self.stopped = True
            for task in self.tasks:
                if task is not asyncio.current_task():
                    task.cancel()
            fields = {"event": "job_claim_lost", "job": self.job.id, "rows_done": self.job.rows_done}
            logger.warning("a job is another server's by now, or has ended", extra=fields)
            self.job.mine = False
            self.tools.forget(self.job)
            await self.tools.ledger.disk.forget_copy(self.job.id)

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
            await self.under_way.stop(chunk.rows)
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
        self.tools.look()

    async def _score(self, chunk: Chunk) -> tuple[list[ScoredRow], dict[int, Exception]]:
        job, ledger = self.job, self.tools.ledger
        async with pinned(self.tools.artifacts, job.about.artifact) as model:
            self.absence.over()
            await ledger.runs(job)
            if not chunk.items:
                return [], {}
            await self.under_way.begin(chunk.rows)
            return await score_chunk(self.tools, model, job, chunk)

    async def _keep(self, chunk: Chunk, scored: list[ScoredRow], bad: Mapping[int, Exception]) -> None:
        job, about, ledger = self.job, self.job.about, self.tools.ledger
        self._leave_out(bad)
        if self.ending.decided:
            return
        sums = job.sums
        if scored:
            plus = partial(sums.plus, scored, labels=about.label_names, bins=about.options.bins)
            sums = await ledger.disk.in_database(plus)
            scored = await ledger.disk.in_database(kept_rows, scored, about.label_names)
        codes = {**chunk.bad, **{row: kind_of(error).code for row, error in bad.items()}}
        await whole(ledger.add_rows(job, chunk.rows, scored, codes, sums=sums, end=chunk.end))
        self.under_way.over(chunk.rows)
        self.dropped.codes = self.dropped.new
        while self.careful and self.careful[-1][0] <= job.rows_done:
            self.careful.pop()
        self.alone = bool(self.careful)
        self.rows = min(self.most_rows, self.careful[-1][1] if self.careful else 2 * self.rows)
        self.losses = 0
        self.pauses.over()

    # A chunk does not go through

    async def unreadable(self, error: Exception) -> None:
        """Let the job wait for what its next chunk could not be read for, or fail once those before it are over."""
        if not self.stopped:
            other = self.tools.ledger.disk.shared and self.pauses.tried >= _READ_TRIES
            if self.pauses.waits_out(error) and not other:
                await self._pause(error)
            else:
                self.unread = error
            self._go_on()

    async def _take_failure(self, chunk: Chunk, error: Exception, *, ahead: bool) -> None:
        if isinstance(error, errors.DrainingError):
            self.tools.stop()
            return
        if isinstance(error, ClaimLostError):
            await self.lost()
            return
        cause, row = (error.cause, error.row) if isinstance(error, RowError) else (error, None)
        half, few = max(1, len(chunk.items) // 2), len(chunk.items) <= 1
        lost = isinstance(error, RowError) and isinstance(cause, errors.DeviceFaultError)
        again = not lost or (few and self.losses < _LOST_TRIES)
        if row is not None and isinstance(cause, UpstreamUnavailableError):
            self.unanswered[row] += 1
            again = self.unanswered[row] < _UPSTREAM_TRIES
        if isinstance(cause, BatchTooLargeError) and not few:
            self.rows = self.most_rows = half
        elif again and self.pauses.waits_out(cause):
            if ahead:
                self.alone = True
                return
            if isinstance(cause, errors.QueueFullError):
                self.rows = half
            self.losses += lost
            await self._pause(cause)
        elif not isinstance(error, RowError | BatchTooLargeError):
            self._cannot(error)
        elif lost and not few:
            self.rows, self.alone = max(1, len(chunk.items) // _PARTS), True
            self.careful.append((chunk.rows[1], self.rows))
        elif row is None and not few:
            self.rows = half
        else:
            self.losses = 0
            self.pauses.over()
            self._leave_out({chunk.items[0].row if row is None else row: cause})

    async def _pause(self, error: Exception) -> None:
        if isinstance(error, ArtifactNotLoadedError):
            if self.tools.ledger.disk.shared:
                self._cannot(error)
                return
            too_long = self.absence.goes_on()
            if too_long is not None:
                self._fail(too_long)
                return
        else:
            self.absence.pause()
        # First: while the pause is written down the runner looks for what to begin.
        self.not_before = time.monotonic() + self.pauses.next_s()
        await self.tools.ledger.pause(self.job, error)
        await self.absence.write()

    def _leave_out(self, bad: Mapping[int, Exception]) -> None:
        """Leave out rows that have no answer, or let the job fail where there are too many."""
        too_many = self.dropped.add(bad)
        if too_many is not None:
            self._fail(too_many)

    # The job ends

    def _cannot(self, error: Exception) -> None:
        self.ending.cannot(error)
        self._drop_chunks()

    def _fail(self, error: Exception) -> None:
        self.ending.fail(error)
        self._drop_chunks()

    def _drop_chunks(self) -> None:
        for chunk in self.chunks:
            if chunk is not asyncio.current_task():
                chunk.cancel()

    async def _end(self) -> None:
        if self.ending.leaving is not None:
            await self.under_way.stop()
        if await self.ending.carry_out(lambda: self.dropped.new):
            self.tools.forget(self.job)
        else:
            await self.lost()
