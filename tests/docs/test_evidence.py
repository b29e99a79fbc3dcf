"""docs/evidence.md and README.md say what the pages with the measured tables say."""

from __future__ import annotations

import evidence_page
import pytest
from documents import ROOT, read


@pytest.mark.parametrize("name", evidence_page.PAGES)
def test_figures_in_sentences_are_those_of_the_tables(name: str) -> None:
    page = read(name)
    assert "<!-- said " in page
    assert page == evidence_page.with_figures(page), "run python tests/docs/evidence_page.py"


def test_the_results_page_holds_the_artifacts_table() -> None:
    table = read("artifacts/sst2-smollm2/report/results.md").partition("\n")[2]
    assert table.strip() in read("docs/results.md")


def test_every_generated_page_is_linked() -> None:
    for page in ("results.md", *(f"../{p.relative_to(ROOT)}" for p in ROOT.glob("benchmarks/**/*.md"))):
        assert f"({page}" in read("docs/evidence.md"), page
