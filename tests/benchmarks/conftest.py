"""A task of a few rows in the place of one of the evidence."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.evidence import adapters, plan, splits, tasks
from benchmarks.evidence.rows import Row
from benchmarks.evidence.tasks import SMALL, Task
from laplora.prompts.templates import PromptTemplate


def moods(_: Path) -> list[Row]:
    words = (("awful", "dull", "bad"), ("great", "good", "warm"))
    return [({"text": f"a {words[n % 2][n % 3]} film number {n}"}, n % 2) for n in range(60)]


@pytest.fixture
def small_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make ``trec`` a task of 60 rows, of which 8 test, and its trainings two epochs long."""
    template = PromptTemplate("moods", 1, "Review: {text}\nSentiment:")
    monkeypatch.setitem(tasks.TASKS, "trec", Task("trec", SMALL, template, ("negative", "positive"), moods))
    monkeypatch.setattr(plan, "RUNS", tmp_path / "evidence")
    monkeypatch.setattr(splits, "TEST_ROWS", 8)
    monkeypatch.setattr(adapters, "EPOCHS", 2)
    monkeypatch.setattr(adapters, "EARLY_EPOCHS", 1)
