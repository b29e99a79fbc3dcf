"""What is published of the benchmarks: pages are made of the committed figures, and benchmarks/README.md names them."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.costs import __main__ as costs
from benchmarks.decision_models import __main__ as decision_models
from benchmarks.evidence import page as evidence
from benchmarks.evidence import scores
from benchmarks.gpu import publish as gpu
from benchmarks.harness import page as speed
from benchmarks.harness.record import FOLDER, read
from benchmarks.label_audit import __main__ as label_audit
from benchmarks.peers import __main__ as peers
from benchmarks.peers.__main__ import page_tables
from benchmarks.speed import published as overload
from benchmarks.speed.__main__ import PARTS
from training.report.markdown import fill

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "benchmarks" / "README.md"


#: By page what makes it, or a part of it, of the committed figures.
MADE: list[tuple[Path, Callable[[str], str]]] = [
    (FOLDER / "RESULTS.md", lambda _: speed.render(read(FOLDER))),
    (overload.PAGE, overload.with_figures),
    (evidence.PAGE, lambda _: evidence.render(scores.read())),
    (costs.PAGE, lambda _: costs.page(json.loads(costs.RESULTS.read_bytes()))),
    (label_audit.PAGE, lambda _: label_audit.page(json.loads(label_audit.RESULTS.read_bytes()))),
    (costs.PAGE, lambda _: costs.page(json.loads(costs.RESULTS.read_bytes()))),
    (decision_models.PAGE, lambda _: decision_models.page(scores.read(decision_models.RESULTS))),
    (
        peers.PAGE,
        lambda page: fill(page, "peers", page_tables(json.loads((peers.FOLDER / "results.json").read_bytes()))),
    ),
]


@pytest.mark.parametrize(("page", "made"), MADE, ids=[str(page.relative_to(ROOT)) for page, _ in MADE])
def test_a_published_page_is_made_of_the_committed_figures(page: Path, made: Callable[[str], str]) -> None:
    text = page.read_text(encoding="utf-8")
    assert made(text) == text


@pytest.mark.parametrize("name", gpu.SENTENCES)
def test_what_a_page_says_of_a_gpu_is_of_the_committed_figures(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert gpu.with_sentence(text, gpu.SENTENCES[name], read(FOLDER)) == text


def test_the_readme_lists_every_page_of_figures_and_commands_that_exist() -> None:
    text = README.read_text(encoding="utf-8")
    linked = {(README.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)", text)}
    assert all(path.is_file() for path in linked)
    pages = {*(page for page, _ in MADE), *(ROOT / "benchmarks").rglob("*.md")}
    assert {str(page.relative_to(ROOT)) for page in pages - linked - {README}} == set()
    modules = set(re.findall(r"python -m ([\w.]+)", text))
    assert len(modules) > 4
    assert [m for m in modules if importlib.util.find_spec(m) is None] == []
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)", text)) <= set(targets)
    assert set(re.findall(r"benchmarks.speed --only ([a-z]+)`", text)) == set(PARTS)
