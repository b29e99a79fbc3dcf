"""The result of a job whose rows are all over: what POST /evaluate says of those that have a label."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from laplora.answers.evaluation import REFERENCE, measure_scores
from laplora.answers.labels import Truth
from service.errors import TooManyBadRowsError
from service.jobs.store.ledger import Ledger
from service.jobs.store.numbers import scores_of
from service.jobs.store.records import Job, JobResult, compact
from service.threads import in_daemon_thread

if TYPE_CHECKING:
    import torch

    from laplora.metrics.scores import RowScores

_MEASURED_AT_A_TIME = 2
_PAGE_ROWS = 2000


class Measuring:
    """Measures jobs, two methods at a time, whichever jobs' they are, in the order of the calls.

    One method of 100,000 rows takes half a minute, in a thread. In memory are five numbers of a row, or where several
    labels may be right of each label of a row, and its NLL by temperature scaling, which it is compared with.
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
        import torch

        truths: list[Truth] = []
        row_scores: list[RowScores] = []
        scaled: list[torch.Tensor] = []
        compared = method != REFERENCE and REFERENCE in job.sums.methods
        last, disk, about = -1, self._ledger.disk, job.about
        read = partial(scores_of, methods=job.sums.methods, labels=about.label_names)
        while page := await disk.in_database(disk.tables.reads.rows, job.number, last, _PAGE_ROWS):
            truths += [row.truth for row in page if row.truth is not None]
            row_scores.append(await disk.in_database(read, page, method))
            if compared:
                scaled.append((await disk.in_database(read, page, REFERENCE)).nll)
            last = page[-1].row
        if len(truths) != job.sums.rows:
            raise RuntimeError(f"{len(truths)} of {job.sums.rows} scored rows are on disk")
        scores = type(row_scores[0])(*map(torch.cat, zip(*row_scores, strict=True)))
        other = torch.cat(scaled) if compared else None
        work = partial(measure_scores, scores, truths, names=about.label_names, how=about.options, scaled=other)
        # In a thread that can hold up neither the event loop nor the process's exit.
        return await asyncio.wrap_future(in_daemon_thread("laplora-measure", work))


def in_words(counts: Counter[str]) -> str:
    """Return how many rows could not be scored, by the code of why."""
    return ", ".join(f"{code}: {count}" for code, count in sorted(counts.items()))
