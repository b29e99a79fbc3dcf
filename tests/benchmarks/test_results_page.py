"""docs/results.md: the study's tables are what the JSON files in docs/results give, before and after publishing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.study.pages.tables import insert_tables, page_tables
from benchmarks.study.results.records import read_published

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")


def between(name: str) -> str:
    return PAGE.partition(f"<!-- study:begin {name} -->\n")[2].partition(f"<!-- study:end {name} -->")[0]


@pytest.mark.parametrize("name", list(page_tables(DOCS / "results")))
def test_each_table_is_what_the_published_files_give(name: str) -> None:
    expected = page_tables(DOCS / "results")[name]
    assert between(name).strip() == expected.strip(), "run python -m benchmarks.study --publish"


def test_inserting_the_tables_again_changes_nothing() -> None:
    assert insert_tables(PAGE, page_tables(DOCS / "results")) == PAGE


def test_every_picture_exists_and_is_small() -> None:
    targets = re.findall(r"!\[[^]]*\]\(([^)#]+)\)", PAGE)
    assert targets
    for target in targets:
        assert (DOCS / target).is_file(), target
    shown = {t for page in DOCS.glob("*.md") for t in re.findall(r"!\[[^]]*\]\(([^)#]+)\)", page.read_text("utf-8"))}
    for path in (DOCS / "results").glob("*.png"):
        assert f"results/{path.name}" in shown, path.name
        assert path.stat().st_size < 150_000, path.name


def test_every_published_method_and_task_is_in_the_tables() -> None:
    published = read_published(DOCS / "results")
    for task in published.setup.tasks:
        assert f"| {task} |" in between("setup")
    for method in published.setup.methods.values():
        assert method.title.replace("|", "\\|") in between("nll")
    assert bool(published.scores) == ("No figures are published yet" not in PAGE)
