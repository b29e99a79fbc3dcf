"""One chunk of a job: read from its upload, and scored by the artifact that the job was uploaded for, and no other."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laplora.errors import ArtifactNotFoundError
from service.artifacts.host import ArtifactHost
from service.errors import ArtifactChangedError, BatchTooLargeError, DeviceMemoryError, UnscorableInputError, kind_of
from service.jobs.metrics import ScoredRow
from service.jobs.records import About, Rows
from service.jobs.upload import read_line
from service.scoring.evaluation import method_rows
from service.scoring.plan import Ask, Plan, Scored
from service.scoring.scorer import Scorer

if TYPE_CHECKING:
    from laplora.predictor import Predictor


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a job, those left out that are known to have no answer.

    Attributes:
        first: number of its first row, from 0; count: of its rows, those left out included.
        numbers, inputs, labels: of each row that is to be scored, its number, fields, and true label's position.
        bad: by number, the codes of the rows left out.
        begin, end: where in the upload, in bytes, it begins, and the row after it.
    """

    first: int
    count: int
    numbers: Sequence[int]
    inputs: Sequence[Mapping[str, Any]]
    labels: Sequence[int]
    bad: Mapping[int, str]
    begin: int
    end: int

    @property
    def rows(self) -> Rows:
        """Which rows of the job they are."""
        return self.first, self.first + self.count


class RowError(Exception):
    """A chunk has no answer because of one of its rows.

    Attributes:
        row: its number; None where nobody knows which.
        cause: what is wrong with it.
    """

    def __init__(self, row: int | None, cause: Exception) -> None:
        super().__init__(type(cause).__name__)
        self.row = row
        self.cause = cause


def read_chunk(
    path: Path, labels: Sequence[str], *, first: int, offset: int, rows: int, most_bytes: int, bad: Mapping[int, str]
) -> Chunk:
    """Return at most ``rows`` rows of an upload, and no more bytes than ``most_bytes`` but for one row.

    Args:
        labels: the artifact's, in order.
        first, offset: number of the first row, and where it begins.
        bad: rows to leave out, and the codes of why.
    """
    numbers: list[int] = []
    inputs: list[Mapping[str, Any]] = []
    positions: list[int] = []
    count = 0
    with path.open("rb") as file:
        file.seek(offset)
        # By bytes too: a few hundred of the longest lines would be a lot of memory.
        while count < rows and (count == 0 or file.tell() - offset < most_bytes):
            item, label = read_line(file.readline(), labels)
            if first + count not in bad:
                numbers.append(first + count)
                inputs.append(item.template_fields)
                positions.append(label)
            count += 1
        left_out = {row: code for row, code in bad.items() if first <= row < first + count}
        return Chunk(first, count, numbers, inputs, positions, left_out, offset, file.tell())


async def score_chunk(
    scorer: Scorer, predictor: Predictor, job_id: str, about: About, chunk: Chunk
) -> tuple[list[ScoredRow], dict[int, Exception]]:
    """Return the chunk's answers, and, by number, the error of each row whose answer is not finite.

    Raises:
        RowError: one of its rows cannot be scored; without it the others may be.
        BatchTooLargeError: the queue could never hold so many.
        LaploraError: nothing could be scored now: no room, not ready, the server is stopping.
    """
    predictive = predictor.recommended
    plan = Plan(
        predictor,
        chunk.inputs,
        ask=Ask(predictive, also=predictor.predictives),
        caller=f"job:{job_id}",
        truncate=about.options.truncate,
        order_average=about.options.order_average,
    )
    try:
        scored = await scorer.score(plan)
    except Exception as error:
        row = _row_at_fault(error, chunk)
        # What is refused for a while, or because it is too much, is about no row, unless it names one.
        refused = isinstance(error, BatchTooLargeError) or kind_of(error).status in (429, 503)
        if row is None and refused and not isinstance(error, DeviceMemoryError):
            raise
        raise RowError(row, error) from error
    return _finite_rows(predictive, scored, chunk)


def _row_at_fault(error: Exception, chunk: Chunk) -> int | None:
    place = re.match(r"inputs\.(\d+)\b", getattr(error, "field", None) or "")
    return None if place is None else chunk.numbers[int(place[1])]


def _finite_rows(predictive: str, scored: Scored, chunk: Chunk) -> tuple[list[ScoredRow], dict[int, Exception]]:
    own_order: Sequence[Any] = scored.own_order or [None] * len(scored.predictions)
    rows: list[ScoredRow] = []
    bad: dict[int, Exception] = {}
    for row, label, prediction, in_own_order in zip(
        chunk.numbers, chunk.labels, scored.predictions, own_order, strict=True
    ):
        methods = method_rows(predictive, prediction, in_own_order)
        if all(math.isfinite(v) for probs, rank in methods.values() for v in [*probs, rank or 0.0]):
            rows.append(ScoredRow(row, label, methods))
        else:
            bad[row] = UnscorableInputError(f"the model has no finite answer for line {row + 1}")
    return rows, bad


@asynccontextmanager
async def pinned(artifacts: ArtifactHost, name: str, digest: str) -> AsyncIterator[Predictor]:
    """Yield the predictor of the artifact with this name and digest: its content is part of what a result says.

    Inside the block it stays in memory. One that is not loaded may be again: that is to be waited for.

    Raises:
        ArtifactChangedError: it is gone, or of another content.
        ArtifactNotLoadedError, DeviceFaultError, DrainingError, NotReadyError: as ``lease``.
    """
    async with AsyncExitStack() as held:
        try:
            predictor = await held.enter_async_context(artifacts.lease(name))
        except ArtifactNotFoundError:
            raise ArtifactChangedError(
                f"the job began on artifact {name!r}, which is gone: upload it again for another"
            ) from None
        if predictor.artifact.digest != digest:
            raise ArtifactChangedError(
                f"the job began on other content of artifact {name!r} than is loaded now: upload it again"
            )
        yield predictor
