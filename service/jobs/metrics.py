"""The metrics of a job: of the rows so far, from sums that grow with each chunk, and of all its rows at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from pydantic import BaseModel

from service.http.schemas.evaluate import MeasureOptions, MethodMetrics
from service.scoring.evaluation import MethodRow, measure_method, padded_probs
from service.threads import in_daemon_thread

_MEASURED_AT_A_TIME = 2
_PAGE_ROWS = 2000


class ScoredRow(NamedTuple):
    """One row's answer: its number, from 0, its true label's position, and its numbers by method."""

    row: int
    label: int
    methods: Mapping[str, MethodRow]


class MethodSums(BaseModel):
    """One method's sums over rows.

    Attributes:
        hits: right answers.
        nll: nats.
        gaps: by confidence bin, right answers less confidences.
    """

    hits: float = 0.0
    nll: float = 0.0
    gaps: list[float]


class Sums(BaseModel):
    """Sums over the first rows of a job, by method."""

    rows: int = 0
    methods: dict[str, MethodSums] = {}

    def plus(self, rows: Sequence[ScoredRow], *, class_count: int, bins: int) -> Sums:
        """Return the sums with more rows in them, at least one.

        Raises:
            NonFiniteError: a probability that is not finite.
        """
        import torch

        from laplora.metrics.scores import reliability_bins, row_nll

        truth = torch.tensor([row.label for row in rows])
        methods = {}
        for name in rows[0].methods:
            probs = padded_probs([row.methods[name][0] for row in rows], class_count)
            before = self.methods.get(name) or MethodSums(gaps=[0.0] * bins)
            new = reliability_bins(probs, truth, bins)
            gaps = [b.count * ((b.accuracy or 0.0) - (b.confidence or 0.0)) for b in new]
            methods[name] = MethodSums(
                hits=before.hits + sum(b.count * (b.accuracy or 0.0) for b in new),
                nll=before.nll + float(row_nll(probs, truth).sum()),
                gaps=[a + b for a, b in zip(before.gaps, gaps, strict=True)],
            )
        return Sums(rows=self.rows + len(rows), methods=methods)

    def metrics(self) -> dict[str, dict[str, float]] | None:
        """Return accuracy, NLL (nats) and ECE by method, as of ``laplora.metrics.scores``; None without a row."""
        if self.rows == 0:
            return None
        return {
            name: {
                "accuracy": sums.hits / self.rows,
                "nll": sums.nll / self.rows,
                "ece": sum(map(abs, sums.gaps)) / self.rows,
            }
            for name, sums in self.methods.items()
        }


class Measuring:
    """Measures finished jobs, two methods at a time, whichever jobs' they are, in the order of the calls.

    One method of 100,000 rows takes half a minute, in a thread. No more rows than those of two methods are in memory.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(_MEASURED_AT_A_TIME)

    async def metrics(
        self,
        rows_after: Callable[[int, int], Awaitable[Sequence[ScoredRow]]],
        *,
        names: Iterable[str],
        rows: int,
        class_count: int,
        options: MeasureOptions,
    ) -> dict[str, MethodMetrics]:
        """Return the metrics of each method.

        Args:
            rows_after: returns at most so many (second) scored rows of numbers above the first argument, in order.
            names: of the methods.
            rows: how many scored rows there are, at least one.

        Raises:
            RuntimeError: there are more or fewer.
        """
        measured: dict[str, MethodMetrics] = {}
        for name in names:
            async with self._turn:
                labels: list[int] = []
                answers: list[MethodRow] = []
                last = -1
                while page := await rows_after(last, _PAGE_ROWS):
                    labels += [row.label for row in page]
                    answers += [row.methods[name] for row in page]
                    last = page[-1].row
                if len(answers) != rows:
                    raise RuntimeError(f"{len(answers)} of {rows} scored rows are on disk")
                work = partial(measure_method, answers, labels, class_count=class_count, how=options)
                # In a thread that can hold up neither the event loop nor the process's exit.
                metrics = await asyncio.wrap_future(in_daemon_thread("laplora-measure", work))
                measured[name] = MethodMetrics.model_validate(metrics)
        return measured
