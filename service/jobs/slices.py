"""Figures of a job by the values of one column of its upload: how large each slice is, and how good the answers are."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from service.errors import InvalidRequestError, TooManyValuesError
from service.jobs.answered import AnsweredRow, answered_pages
from service.jobs.disk import Disk
from service.jobs.records import About, Job, MethodSums, ScoredRow, Sums
from service.scoring.evaluation import questions

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

#: Most different values of a column; each has sums of every method in memory.
MOST_VALUES = 1000
#: Most characters of a value that is text.
_VALUE_CHARS = 200
#: Of each slice: rows that were scored and that were not; of the first, those to review and unfamiliar ones.
_SCORED, _BAD, _REVIEW, _UNFAMILIAR = range(4)


async def slices(
    disk: Disk, job: Job, column: str, *, most: int, run: Callable[[Callable[[], Any]], Awaitable[Any]]
) -> dict[str, Any]:
    """Return the figures of the ``most`` largest slices by a column, and those of all others together.

    Args:
        run: runs work on a thread, a page of rows at a time.

    Raises:
        InvalidRequestError: the upload has no such column.
        TooManyValuesError: it has more than 1,000 different values, or one of more than 200 characters.
    """
    if column not in job.about.columns:
        known = [name[:64] for name in list(job.about.columns)[:20]]
        raise InvalidRequestError(f"the upload has no such column; its columns are {known}", field="query.by")
    by_value = await run(partial(_ByValue, job.about, column))
    async with aclosing(answered_pages(disk, job)) as pages:
        async for page in pages:
            await run(partial(by_value.add, page))
    figures: dict[str, Any] = await run(partial(by_value.figures, most))
    return figures


class _ByValue:
    """Sums over rows by the values of a column. Each page is added at once, whatever values are in it."""

    def __init__(self, about: About, column: str) -> None:
        import torch

        self._about, self._column = about, column
        #: By value, as JSON: its place in what follows.
        self._places: dict[str, int] = {}
        self._counts = torch.zeros(MOST_VALUES, 4, dtype=torch.int64)
        #: By method, of each place: right answers, NLL (nats), and the gaps of ``MethodSums``.
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, page: Sequence[AnsweredRow]) -> None:
        """Add rows."""
        import torch

        places: list[int] = []
        scored: list[ScoredRow] = []
        kinds: list[tuple[int, int]] = []
        for one in page:
            place = self._place(one)
            if one.scored is None:
                kinds.append((place, _BAD))
                continue
            places.append(place)
            scored.append(one.scored)
            answer = one.answer or {}
            kinds.append((place, _SCORED))
            if answer.get("decision") == "review":
                kinds.append((place, _REVIEW))
            if "unfamiliar" in answer.get("flags", ()):
                kinds.append((place, _UNFAMILIAR))
        index = torch.tensor(kinds)
        self._counts.index_put_((index[:, 0], index[:, 1]), torch.tensor(1), accumulate=True)
        if scored:
            self._add_scored(torch.tensor(places), scored)

    def _place(self, one: AnsweredRow) -> int:
        value = json.dumps(one.columns.get(self._column), sort_keys=True, ensure_ascii=False)
        if len(value) > _VALUE_CHARS + 2 or (value not in self._places and len(self._places) >= MOST_VALUES):
            raise TooManyValuesError(
                f"a column of figures has at most {MOST_VALUES} different values of {_VALUE_CHARS} characters, this "
                "one has more: choose a coarser one, or download the rows",
                field="query.by",
                limit=MOST_VALUES,
            )
        return self._places.setdefault(value, len(self._places))

    def _add_scored(self, places: torch.Tensor, rows: Sequence[ScoredRow]) -> None:
        import torch

        from laplora.metrics.scores import bin_index, row_nll

        labels, bins = self._about.label_names, self._about.options.bins
        index = places.repeat_interleave(labels.questions)
        truths = [row.truth for row in rows]
        for name in rows[0].methods:
            probs, right = questions([row.methods[name][0] for row in rows], truths, labels)
            confidence, predicted = probs.max(1)
            hits = (predicted == right).double()
            sums = self._sums.setdefault(name, torch.zeros(MOST_VALUES, 2 + bins, dtype=torch.float64))
            for column, values in ((0, hits), (1, row_nll(probs, right)), (2 + bin_index(confidence, bins), None)):
                where = torch.as_tensor(column).expand_as(index)
                sums.index_put_((index, where), hits - confidence if values is None else values, accumulate=True)

    def figures(self, most: int) -> dict[str, Any]:
        """Return the slices as the contract writes them: the largest first; of equal ones the first by value."""
        rows = (self._counts[:, _SCORED] + self._counts[:, _BAD]).tolist()
        ordered = sorted(self._places.items(), key=lambda item: (-rows[item[1]], item[0]))
        others = [place for _, place in ordered[most:]]
        return {
            "column": self._column,
            "rows": sum(rows),
            "values": len(self._places),
            "slices": [self._figures(json.loads(value), [place]) for value, place in ordered[:most]],
            "others": self._figures(None, others) if others else None,
        }

    def _figures(self, value: Any, places: list[int]) -> dict[str, Any]:
        scored, bad, review, unfamiliar = self._counts[places].sum(0).tolist()
        methods: dict[str, MethodSums] = {}
        for name, sums in self._sums.items() if scored else ():
            hits, nll, *gaps = sums[places].sum(0).tolist()
            methods[name] = MethodSums(hits=hits, nll=nll, gaps=gaps)
        return {
            "value": value,
            "rows": scored + bad,
            "rows_bad": bad,
            "review": review / scored if scored else None,
            "unfamiliar": unfamiliar / scored if scored else None,
            "methods": Sums(rows=scored, questions=self._about.label_names.questions, methods=methods).metrics(),
        }
