"""docs/results.md: the study's tables are what the study.json in docs/results gives, before and after publishing."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.study.pages.tables import page_tables
from benchmarks.study.results.records import read_records, tables_of
from training.report.markdown import fill

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")


def test_the_tables_are_what_the_published_file_gives() -> None:
    tables = page_tables(tables_of(read_records(DOCS / "results")))
    assert fill(PAGE, "study", tables) == PAGE, "run python -m benchmarks.study --publish"


def test_every_picture_exists_and_is_small() -> None:
    targets = re.findall(r"!\[[^]]*\]\(([^)#]+)\)", PAGE)
    assert targets
    for target in targets:
        assert (DOCS / target).is_file(), target
    shown = {t for page in DOCS.glob("*.md") for t in re.findall(r"!\[[^]]*\]\(([^)#]+)\)", page.read_text("utf-8"))}
    for path in (DOCS / "results").glob("*.png"):
        assert f"results/{path.name}" in shown, path.name
        assert path.stat().st_size < 150_000, path.name
