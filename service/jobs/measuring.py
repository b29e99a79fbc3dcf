"""A job's result: the metrics of all its rows, from what is on disk, one predictive at a time.

That takes a while, half a minute for each predictive at 100,000 rows. So jobs take turns here too: two predictives are
measured at a time, whichever jobs' they are, in the order of asking; and no more than their rows are in memory.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service.http.schemas.evaluate import MethodMetrics
from service.http.schemas.jobs import JobResult
from service.jobs.records import Job
from service.jobs.waiting import in_thread
from service.scoring.evaluation import MethodRow, measure_method

if TYPE_CHECKING:
    from service.jobs.board import JobBoard

_AT_A_TIME = 2
_PAGE_ROWS = 2000


class Measuring:
    """Measures the jobs of a board. Belongs to the event loop."""

    def __init__(self, board: JobBoard) -> None:
        self._board = board
        self._turn = asyncio.Semaphore(_AT_A_TIME)

    async def result(self, job: Job) -> str:
        """Return the result, JSON, of a job with at least one scored row."""
        found: dict[str, MethodMetrics] = {}
        for name in job.sums.methods:
            async with self._turn:
                found[name] = await self._measure(job, name)
        return JobResult(artifact=job.about.artifact, rows=job.sums.rows, methods=found).model_dump_json()

    async def _measure(self, job: Job, name: str) -> MethodMetrics:
        about, last = job.about, -1
        labels: list[int] = []
        rows: list[MethodRow] = []
        while page := await self._board.on_disk_thread(self._board.store.rows, job.number, last, _PAGE_ROWS):
            labels += [row.label for row in page]
            rows += [row.methods[name] for row in page]
            last = page[-1].row
        if len(rows) != job.sums.rows:
            raise RuntimeError(f"{len(rows)} of {job.sums.rows} scored rows are on disk")
        metrics = await in_thread(
            lambda: measure_method(rows, labels, class_count=len(about.labels), how=about.options)
        )
        return MethodMetrics.model_validate(metrics)
