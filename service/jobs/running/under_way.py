"""Which rows of a job are under way, on disk before they run, so that an unclean end tells of them; and the dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from service.errors import DeviceFaultError, TooManyBadRowsError, kind_of
from service.jobs.reading.measuring import in_words
from service.jobs.running.tools import Tools
from service.jobs.store.claims import ClaimLostError
from service.jobs.store.disk import STORAGE_ERRORS
from service.jobs.store.records import Job, RowRange
from service.jobs.store.tasks import whole
from service.telemetry.logs import log_crash, logger

#: A row that was alone at so many unclean ends is dropped; a first one, with others beside it, is not counted.
_LONE_TRIES = 2


class UnderWay:
    """The rows of a job that are under way here, beside those that earlier processes left begun."""

    def __init__(self, job: Job, tools: Tools) -> None:
        self._job, self._tools = job, tools
        #: By rows, their lone tries.
        self._tries: dict[RowRange, int] = {}

    @property
    def suspect(self) -> bool:
        """Whether the next row was perhaps under way when an earlier process ended uncleanly, and is tried alone."""
        return any(after > self._job.rows_done for _, after in self._job.begun)

    @property
    def given_up(self) -> dict[int, Exception]:
        """The next row by number, and why it is dropped, where it was alone at several unclean ends."""
        row = self._job.rows_done
        tries = self._job.begun.get((row, row + 1), 0)
        if tries < _LONE_TRIES:
            return {}
        fields = {"event": "job_row_given_up", "job": self._job.id, "row": row, "tries": tries}
        logger.error("a row of a job is left out: the server ended uncleanly whenever it ran", extra=fields)
        return {row: DeviceFaultError("the server ended uncleanly whenever this row ran")}

    async def begin(self, rows: RowRange) -> None:
        """Keep that rows are about to run.

        Raises:
            ClaimLostError, StorageFullError, JobsUnavailableError: nothing was kept.
        """
        self._tries[rows] = self._job.begun.get(rows, 0) + self.suspect
        await self._tools.ledger.set_begun(self._job, self._tries)

    def over(self, rows: RowRange) -> None:
        """Note that rows are over, as the disk knows."""
        self._tries.pop(rows, None)

    async def stop(self, *rows: RowRange) -> None:
        """Keep that these rows are not under way any more, or none are: the process lives.

        A later end of it is not about them.
        """
        gone = [some for some in rows or tuple(self._tries) if some in self._tries]
        if gone and not self._tools.scorer.backend.failed:
            for some in gone:
                del self._tries[some]
            with suppress(*STORAGE_ERRORS, ClaimLostError):
                await whole(self._tools.ledger.set_begun(self._job, self._tries))


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
