"""README.md and docs/evidence.md say what the pages with the measured tables say, and README's tree exists."""

from __future__ import annotations

import re

import evidence_page
import pytest
from documents import ROOT, read, words
from PIL import Image

from benchmarks import before_after
from laplora.artifact.folder import read_artifact

README = read("README.md")


def test_the_picture_is_of_the_artifact_as_it_is() -> None:
    with Image.open(before_after.PICTURE) as picture:
        digest = read_artifact(before_after.ARTIFACT).digest
        assert picture.info["Source"] == digest, "run python -m benchmarks.before_after"


def test_the_caption_has_the_artifacts_figures() -> None:
    methods = before_after.read_evaluations(before_after.ARTIFACT)
    before, after = methods["map"], methods["laplace"]
    confidence = sum(b.count * (b.confidence or 0) for b in before.reliability) / before.rows
    caption = words("README.md")
    assert before.accuracy == after.accuracy
    assert f"It is right on {before.accuracy:.0%} of the test rows.".replace("%", " %") in caption
    assert f"it is {confidence:.0%} sure on average".replace("%", " %") in caption
    assert f"(ECE) is {before.ece:.3f}." in caption
    assert f"the error is {after.ece:.3f} at the same accuracy" in caption
    assert f"Temperature scaling has {methods['temperature'].ece:.3f} here" in caption


def test_every_path_in_the_tree_exists() -> None:
    tree = re.search(r"^## What is where\n```text\n(.*?)```", README, re.MULTILINE | re.DOTALL)
    assert tree
    lines = tree[1].splitlines()
    assert len(lines) <= 10
    for line in lines:
        folder, _, about = line.partition("/")
        assert (ROOT / folder).is_dir(), folder
        if folder in ("laplora", "service"):
            rooms = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
            assert set(about.partition(": ")[2].split(", ")) == rooms


@pytest.mark.parametrize("name", evidence_page.PAGES)
def test_figures_in_sentences_are_those_of_the_tables(name: str) -> None:
    page = read(name)
    assert "<!-- said " in page
    assert page == evidence_page.with_figures(page), "run python tests/docs/evidence_page.py"


def test_the_pages_of_figures_are_linked_and_hold_the_artifacts_table() -> None:
    table = read("artifacts/sst2-smollm2/report/results.md").partition("\n")[2]
    assert table.strip() in read("docs/results.md")
    for page in ("results.md", *(f"../{p.relative_to(ROOT)}" for p in ROOT.glob("benchmarks/**/*.md"))):
        assert f"({page}" in read("docs/evidence.md"), page
