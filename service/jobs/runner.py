"""Scores queued jobs in the background: one at a time per artifact, in chunks, each on disk before the next begins.

Callers take turns. A job is one caller of the queue among the others, so that requests do not wait behind all of it;
what the queue or the disk has no room for is tried again later. An upload's prompts leave the disk when its job ends.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from laplora.errors import LaploraError
from service.callers import Caller
from service.engine import Ask
from service.errors import (
    BatchTooLargeError,
    DrainingError,
    QueueFullError,
    UnscorableInputError,
    error_content,
    kind_of,
)
from service.evaluation import MethodRow, measure_method, method_rows
from service.jobs.lines import read_line
from service.jobs.pauses import Pauses
from service.jobs.pinned import pinned
from service.jobs.records import Job, StoredStatus
from service.jobs.waiting import in_thread, whole
from service.logs import log_crash
from service.schemas import JobResult, MethodMetrics
from service.scoring import Scored, ServiceState, score

if TYPE_CHECKING:
    from service.jobs.board import JobBoard

T = TypeVar("T")

#: A chunk is as many rows as make two device batches, so that few batches are not full, and no more than this.
_CHUNK_BATCHES = 2
_CHUNK_ROWS = 256
#: A job has no deadline; 30 years, a finite number, is none.
_NO_DEADLINE_S = 1e9
_PAGE_ROWS = 2000


@dataclass(frozen=True)
class _Chunk:
    """The next rows of a job: their fields, true labels, and where in the upload the row after them begins."""

    inputs: list[dict[str, Any]]
    labels: list[int]
    end: int


class Runner:
    """Runs the jobs of a board. Belongs to the event loop."""

    def __init__(self, state: ServiceState, board: JobBoard) -> None:
        self._state = state
        self._board = board
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turns: dict[str, int] = {}
        self._stopped = False

    def wake(self) -> None:
        """Start the jobs that nothing keeps from running."""
        for job in self._board.waiting():
            digest = job.about.artifact.digest
            if not self._stopped and digest not in self._lanes:
                lane = asyncio.create_task(self._lane(digest), name="laplora-jobs")
                self._lanes[digest] = lane
                lane.add_done_callback(lambda _, digest=digest: self._lane_ended(digest))  # type: ignore[misc]

    def stop(self) -> None:
        """Stop every job at its last whole chunk; what of them waits for the device is dropped."""
        self._stopped = True
        for task in self._lanes.values():
            task.cancel()

    async def wait_closed(self) -> None:
        """Return once nothing of :meth:`stop` is left to do."""
        await asyncio.gather(*self._lanes.values(), return_exceptions=True)

    async def drop(self, job: Job) -> None:
        """Stop one job, if it runs; return once nothing of it does."""
        task = self._running.get(job.id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    def _lane_ended(self, digest: str) -> None:
        self._lanes.pop(digest, None)
        self.wake()

    async def _lane(self, digest: str) -> None:
        while not self._stopped and (
            jobs := [job for job in self._board.waiting() if job.about.artifact.digest == digest]
        ):
            job = min(jobs, key=lambda job: (self._turns.get(job.owner, 0), job.number))
            self._turns[job.owner] = max(self._turns.values(), default=0) + 1
            task = self._running[job.id] = asyncio.create_task(self._run(job), name="laplora-job")
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
                await asyncio.wait({task})
                del self._running[job.id]

    async def _run(self, job: Job) -> None:
        pauses, rows, most_rows = Pauses(), _CHUNK_ROWS, _CHUNK_ROWS
        ending: tuple[StoredStatus, dict[str, Any]] | None = None
        try:
            while not job.finished:
                try:
                    if ending is not None:
                        await whole(self._board.end(job, ending[0], **ending[1]))
                    elif job.rows_done < job.about.rows:
                        await self._score_chunk(job, rows)
                        rows = min(most_rows, 2 * rows)
                    else:
                        ending = "done", {"result": await self._measure(job)}
                    pauses.over()
                except Exception as error:
                    if isinstance(error, DrainingError):
                        self._stopped = True
                        return
                    too_large, alone = isinstance(error, BatchTooLargeError), rows == 1
                    if too_large or isinstance(error, QueueFullError):
                        rows = max(1, rows // 2)
                    if too_large:
                        most_rows = rows
                    if pauses.waits_out(error):
                        self._board.pause(job, error)
                        await pauses.wait()
                    elif alone or not too_large:
                        if kind_of(error).status == 500:
                            log_crash("a job failed", error)
                        if ending is not None and ending[0] == "failed":
                            self._board.lose(job, error)
                            return
                        ending = "failed", {"error": error_content(error, "")["error"]}
        finally:
            self._board.stopped(job)

    async def _score_chunk(self, job: Job, most_rows: int) -> None:
        begun = time.monotonic()
        about = job.about
        with pinned(self._state, about.artifact.name, about.artifact.digest) as predictor:
            rows = min(most_rows, self._batch_rows(job), about.rows - job.rows_done)
            chunk = await self._board.on_disk_thread(self._read_chunk, job, rows)
            self._board.runs(job)
            asked = predictor.recommended
            try:
                scored = await score(
                    self._state,
                    predictor,
                    chunk.inputs,
                    ask=Ask(asked, also=predictor.predictives),
                    truncate=about.options.truncate,
                    order_average=about.options.order_average,
                    deadline=begun + _NO_DEADLINE_S,
                    caller=Caller(f"job:{job.id}"),
                )
            except LaploraError as error:
                raise _of_line(error, job.rows_done) from None
        found = _finite_rows(asked, scored, job.rows_done)
        sums = await self._board.on_disk_thread(
            lambda: job.sums.plus(found, chunk.labels, class_count=len(about.labels), bins=about.options.bins)
        )
        await whole(self._board.keep_rows(job, chunk.labels, found, sums=sums, input_offset=chunk.end))
        job.pace.append((len(found), time.monotonic() - begun))

    def _batch_rows(self, job: Job) -> int:
        tokens_each = max(1.0, job.about.tokens / job.about.rows)
        return max(1, math.floor(_CHUNK_BATCHES * self._state.engine.token_budget / tokens_each))

    def _read_chunk(self, job: Job, rows: int) -> _Chunk:
        inputs: list[dict[str, Any]] = []
        labels: list[int] = []
        with self._board.folder.inputs(job.id).open("rb") as file:
            file.seek(job.input_offset)
            most_bytes = self._state.settings.max_body_bytes
            # By bytes too: a few hundred of the longest lines would be a lot of memory.
            while len(inputs) < rows and (not inputs or file.tell() - job.input_offset < most_bytes):
                item, label = read_line(file.readline(), job.about.labels)
                inputs.append(item.template_fields)
                labels.append(label)
            return _Chunk(inputs, labels, file.tell())

    async def _measure(self, job: Job) -> str:
        """Return the result, JSON. It takes a while: half a minute for each predictive at 100,000 rows."""
        about = job.about
        labels: list[int] = []
        methods: dict[str, list[MethodRow]] = {}
        while len(labels) < about.rows:
            page = await self._board.on_disk_thread(self._board.store.rows, job.number, len(labels), _PAGE_ROWS)
            if not page:
                raise RuntimeError(f"{len(labels)} of {about.rows} rows are on disk")
            for label, row in page:
                labels.append(label)
                for name, numbers in row.items():
                    methods.setdefault(name, []).append(numbers)
        found: dict[str, MethodMetrics] = {}
        for name, rows in methods.items():
            found[name] = await in_thread(
                lambda rows=rows: measure_method(  # type: ignore[misc]
                    rows, labels, class_count=len(about.labels), options=about.options
                )
            )
        return JobResult(artifact=about.artifact, rows=about.rows, methods=found).model_dump_json()


def _finite_rows(asked: str, scored: Scored, first: int) -> list[dict[str, MethodRow]]:
    """Return each row's numbers.

    Raises:
        UnscorableInputError: one of them is not finite; the field names the line.
    """
    own_order: Sequence[Any] = scored.own_order or [None] * len(scored.predictions)
    found = []
    for i, (prediction, own) in enumerate(zip(scored.predictions, own_order, strict=True)):
        row = method_rows(asked, prediction, own)
        if not all(math.isfinite(v) for probs, rank in row.values() for v in [*probs, rank or 0.0]):
            line = first + i + 1
            raise UnscorableInputError(
                f"the model has no finite answer for line {line}: change or leave out that line", field=f"lines.{line}"
            )
        found.append(row)
    return found


def _of_line(error: LaploraError, first: int) -> LaploraError:
    """Return the error of an input of a chunk as one of its line."""
    place = re.fullmatch(r"inputs\.(\d+)(.*)", getattr(error, "field", None) or "")
    if place is None:
        return error
    line = first + int(place[1]) + 1
    error.args = (re.sub(rf"\binput {place[1]}\b", f"line {line}", str(error)),)
    error.field = f"lines.{line}{place[2]}"  # type: ignore[attr-defined]
    return error
