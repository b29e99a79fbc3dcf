"""The rows of a job that have no answer: dropped and recorded, up to a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from service.errors import TooManyBadRowsError, kind_of
from service.jobs.reading.measuring import in_words
from service.jobs.store.records import Job
from service.telemetry.logs import log_crash


class DroppedRows:
    """Rows without an answer.

    Attributes:
        codes: by number, why; not all of them are on disk yet, and of those that are not all are here.
    """

    def __init__(self, job: Job, limit: int) -> None:
        self._job, self._limit = job, limit
        self.codes: dict[int, str] = {}

    @property
    def new(self) -> dict[int, str]:
        """``codes`` without what has come to disk."""
        return {row: code for row, code in self.codes.items() if row >= self._job.rows_done}

    def add(self, bad: Mapping[int, Exception]) -> TooManyBadRowsError | None:
        """Drop rows; return the error that the job fails with where there are too many."""
        for row, error in bad.items():
            self.codes[row] = kind_of(error).code
            if kind_of(error).status == 500:
                log_crash("a row of a job could not be scored", error)
        counts = self._job.bad_counts + Counter(self.new.values())
        if not bad or counts.total() <= self._limit:
            return None
        return TooManyBadRowsError(
            f"{counts.total()} rows could not be scored ({in_words(counts)}), max_job_bad_rows is {self._limit}: the "
            "job lists their lines, change or leave out those",
            field=f"lines.{min(bad) + 1}",
            limit=self._limit,
            got=counts.total(),
        )
