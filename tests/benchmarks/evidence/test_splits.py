"""Rows are dealt without overlap, the same every time, and a larger budget keeps the rows of a smaller one."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.evidence.plan import DRAWS, TEST_ROWS, Training
from benchmarks.evidence.rows import Row
from benchmarks.evidence.splits import deal
from benchmarks.evidence.tasks import TASKS, Task
from laplora.errors import DataError
from laplora.prompts.examples import Example
from laplora.prompts.templates import PromptTemplate


def numbered(count: int) -> list[Row]:
    """Return so many rows, and each of them again in capitals: the same prompt."""
    rows: list[Row] = [({"text": f"row {n}"}, n % 2) for n in range(count)]
    return rows + [({"text": f"ROW {n}"}, n % 2) for n in range(count)]


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> str:
    template = PromptTemplate("numbers", 1, "{text} is")
    monkeypatch.setitem(TASKS, "numbers", Task("numbers", template, ("even", "odd"), lambda _: numbered(2600)))
    return "numbers"


def texts(examples: tuple[Example, ...]) -> set[str]:
    return {example.fields["text"].casefold() for example in examples}


def test_no_row_has_two_roles_and_a_larger_budget_keeps_the_rows_of_a_smaller_one(task: str) -> None:
    before: tuple[set[str], ...] = (set(), set())
    for budget in (150, 450, 1500):
        dealt = deal(Training(task, budget, 1), Path())
        train, pool, test = texts(dealt.train), texts(dealt.pool), texts(dealt.test)
        assert (len(train), len(pool), len(test)) == (budget * 2 // 3, min(DRAWS * budget // 3, 1000), TEST_ROWS)
        assert not train & pool | train & test | pool & test
        assert [len(set(draw)) for draw in dealt.draws] == [budget // 3] * DRAWS
        together = len({place for draw in dealt.draws for place in draw})
        assert (together == DRAWS * (budget // 3)) == (budget < 1500), "draws of a pool that is short overlap"
        assert before[0] < train
        assert before[1] < pool
        before = train, pool


def test_seeds_differ_in_training_rows_and_share_test_rows(task: str) -> None:
    dealt = [deal(Training(task, 450, seed), Path()) for seed in range(3)]
    assert len({frozenset(texts(d.test)) for d in dealt}) == 1
    assert len({frozenset(texts(d.train)) for d in dealt}) == 3
    assert dealt[0] == deal(Training(task, 450, 0), Path())


def test_a_task_of_too_few_rows_is_named(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    monkeypatch.setitem(TASKS, task, Task(task, TASKS[task].template, ("even", "odd"), lambda _: numbered(600)))
    with pytest.raises(DataError, match="numbers has 100 rows beside its test rows, a budget of 450 needs 1050"):
        deal(Training(task, 450, 0), Path())
