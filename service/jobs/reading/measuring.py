"""The result of a job whose rows are all over: what POST /evaluate says of those that have a label."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any

from laplora.answers.evaluation import REFERENCE, MethodRow, measure_method
from laplora.answers.labels import Truth
from service.errors import TooManyBadRowsError
from service.jobs.store.ledger import Ledger
from service.jobs.store.records import Job, JobResult, compact
from service.threads import in_daemon_thread

_MEASURED_AT_A_TIME = 2
_PAGE_ROWS = 2000


class Measuring:
    """Measures jobs, two methods at a time, whichever jobs' they are, in the order of the calls.

    One method of 100,000 rows takes half a minute, in a thread. No more rows than those of two methods are in memory,
    and beside each of them temperature scaling's, which it is compared with.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._turn = asyncio.Semaphore(_MEASURED_AT_A_TIME)

    async def result(self, job: Job) -> str:
        """Return a job's result, JSON.

        Raises:
            TooManyBadRowsError: no row could be scored.
        """
        if job.sums.scored == 0:
            (first, _), *_ = await self._ledger.bad_rows(job)
            raise TooManyBadRowsError(
                f"no row could be scored ({in_words(job.bad_counts)})", field=f"lines.{first + 1}"
            )
        methods = {}
        for name in job.sums.methods:
            async with self._turn:
                methods[name] = await self._measured(job, name)
        sums = job.sums
        result = JobResult(
            artifact=job.about.artifact, rows=sums.rows, unfamiliar=sums.unfamiliar_share, methods=methods
        )
        return compact(result.model_dump(mode="json"))

    async def _measured(self, job: Job, method: str) -> dict[str, Any]:
        truths: list[Truth] = []
        answers: list[MethodRow] = []
        scaled: list[MethodRow] | None = None
        if method != REFERENCE and REFERENCE in job.sums.methods:
            scaled = []
        last = -1
        disk = self._ledger.disk
        while page := await disk.in_database(disk.tables.reads.rows, job.number, last, _PAGE_ROWS):
            truths += [row.truth for row in page if row.truth is not None]
            answers += [row.methods[method] for row in page]
            if scaled is not None:
                scaled += [row.methods[REFERENCE] for row in page]
            last = page[-1].row
        if len(answers) != job.sums.rows:
            raise RuntimeError(f"{len(answers)} of {job.sums.rows} scored rows are on disk")
        about = job.about
        work = partial(measure_method, answers, truths, names=about.label_names, how=about.options, scaled=scaled)
        # In a thread that can hold up neither the event loop nor the process's exit.
        return await asyncio.wrap_future(in_daemon_thread("laplora-measure", work))


def in_words(counts: Counter[str]) -> str:
    """Return how many rows could not be scored, by the code of why."""
    return ", ".join(f"{code}: {count}" for code, count in sorted(counts.items()))
