"""A task of a few rows in the place of one of the evidence, and a folder for what no test may publish."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.evidence import adapters, splits, tasks
from benchmarks.evidence.rows import Row
from benchmarks.evidence.tasks import Task
from benchmarks.harness import provenance
from laplora.prompts.templates import PromptTemplate


def moods(_: Path) -> list[Row]:
    words = (("awful", "dull", "bad"), ("great", "good", "warm"))
    return [({"text": f"a {words[n % 2][n % 3]} film number {n}"}, n % 2) for n in range(60)]


@pytest.fixture
def small_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``trec`` a task of 60 rows, of which 8 test, and its trainings two epochs long."""
    template = PromptTemplate("moods", 1, "Review: {text}\nSentiment:")
    monkeypatch.setitem(tasks.TASKS, "trec", Task("trec", template, ("negative", "positive"), moods))
    monkeypatch.setattr(splits, "TEST_ROWS", 8)
    monkeypatch.setattr(adapters, "EPOCHS", 2)
    monkeypatch.setattr(adapters, "EARLY_EPOCHS", 1)


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Yield where a run puts what it does not publish; afterwards all that is published is as it was."""

    def published() -> dict[Path, bytes]:
        folders = (provenance.ROOT / "docs", provenance.ROOT / "benchmarks")
        files = [
            file for folder in folders for file in folder.rglob("*") if file.suffix in (".json", ".md", ".csv", ".png")
        ]
        return {file: file.read_bytes() for file in (provenance.ROOT / "README.md", *files)}

    monkeypatch.setattr(provenance, "SCRATCH", tmp_path)
    before = published()
    yield tmp_path
    assert published() == before
