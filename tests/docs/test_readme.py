"""README.md, docs/evidence.md and docs/architecture.md say and show what measured tables and the code do."""

from __future__ import annotations

import importlib
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import evidence_page
import pytest
from documents import ROOT, read

from benchmarks import before_after
from benchmarks.harness.provenance import ARTIFACT


def test_the_picture_is_of_the_study() -> None:
    drawn = before_after.picture(before_after.measured())
    assert before_after.PICTURE.read_text(encoding="utf-8") == drawn, "run python -m benchmarks.before_after"


def test_the_readme_is_short() -> None:
    assert read("README.md").count("\n") <= 90


def test_every_path_in_the_tree_exists() -> None:
    tree = re.search(r"^## What is where\n```text\n(.*?)```", read("CONTRIBUTING.md"), re.MULTILINE | re.DOTALL)
    assert tree
    lines = tree[1].splitlines()
    assert len(lines) <= 10
    for line in lines:
        folder = line.partition("/")[0]
        assert (ROOT / folder).is_dir(), folder


@pytest.mark.parametrize("name", evidence_page.PAGES)
def test_figures_in_sentences_are_those_of_the_tables(name: str) -> None:
    page = read(name)
    assert "<!-- said " in page
    assert page == evidence_page.with_figures(page), "run python tests/docs/evidence_page.py"


def test_the_pages_of_figures_are_linked_and_hold_the_artifacts_table() -> None:
    # After its title and its reason, whose words have changed since.
    table = (ARTIFACT / "report" / "results.md").read_text("utf-8").split("\n\n", 2)[2]
    assert table.strip() in read("docs/results.md")
    for page in ("results.md", *(f"../{p.relative_to(ROOT)}" for p in ROOT.glob("benchmarks/**/*.md"))):
        assert f"({page}" in read("docs/evidence.md"), page


PICTURES = ROOT / "docs" / "pictures"
#: The class of a package's boxes in the picture.
PACKAGES = {"laplora": "library", "service": "job", "training": "file"}
#: Commands, on top of everything and in no package.
COMMANDS = {"__main__", "demo", "keys"}


def layers_of(package: str) -> list[set[str]]:
    """Return a package's layers from the top down, by the contract in pyproject.toml."""
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = (
        contract["layers"]
        for contract in contracts
        if contract.get("containers") == [package] or str(contract.get("layers", [""])[0]).startswith(f"{package}.")
    )
    found = [{boxed_as(name, package) for name in re.split(r" [|:] ", layer)} - COMMANDS for layer in layers]
    return [layer for layer in found if layer]


def boxed_as(name: str, package: str) -> str:
    """Return how the picture calls a module of a contract: what stands beside the routes is ``http``."""
    name = name.removeprefix(f"{package}.")
    return name.replace(".", "/") if name == "http.routes" else name.partition(".")[0]


def drawn(package: str) -> list[set[str]]:
    """Return the names in the picture's boxes of a package, row by row from the top down."""
    rows: dict[float, set[str]] = {}
    box: tuple[str, float] = ("", 0.0)
    for element in ElementTree.parse(PICTURES / "packages.svg").getroot():
        kind = element.tag.rpartition("}")[2]
        if kind == "rect":
            box = (element.get("class", ""), float(element.get("y", 0)))
        elif kind == "text" and "title" in element.get("class", "") and box[0] == PACKAGES[package]:
            rows.setdefault(box[1], set()).update(filter(None, re.split(r",\s*", element.text or "")))
    return [names for _, names in sorted(rows.items())]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_picture_has_the_layers_of_the_contract(package: str) -> None:
    assert drawn(package) == layers_of(package)


def test_the_pictures_are_as_the_script_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / ".ci")
    drawn_now = importlib.import_module("pictures").pictures()
    assert {path.stem for path in PICTURES.glob("*.svg")} == {*drawn_now, before_after.PICTURE.stem}
    stale = [name for name, text in drawn_now.items() if read(f"docs/pictures/{name}.svg") != text]
    assert stale == [], "run python .ci/pictures.py"


@pytest.mark.parametrize("picture", sorted(PICTURES.glob("*.svg")), ids=lambda picture: picture.name)
def test_a_picture_says_in_words_what_it_shows(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    words = {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in root}
    assert words["title"]
    assert len(words["desc"]) > 40
    assert any(f"pictures/{picture.name})" in page.read_text("utf-8") for page in ROOT.glob("docs/*.md"))
