"""The README's figures are the default artifact's, and its tree and commands exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MANIFEST = json.loads((ROOT / "artifacts" / "sst2-smollm2" / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("row", "method"),
    [
        ("zero-shot", "zero_shot"),
        ("fine-tuned (MAP)", "map"),
        ("temperature scaling", "temperature"),
        ("**Laplace (served)**", "laplace"),
    ],
)
def test_the_table_is_the_artifacts(row: str, method: str) -> None:
    metrics = MANIFEST["metrics"][method]
    assert f"| {row} | {metrics['accuracy']:.3f} | {metrics['nll']:.3f} | {metrics['ece']:.3f} |" in README


def test_the_results_page_holds_the_artifacts_own_table() -> None:
    table = (ROOT / "artifacts" / "sst2-smollm2" / "report" / "results.md").read_text(encoding="utf-8")
    assert table.partition("\n")[2].strip() in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_every_path_in_the_tree_exists() -> None:
    tree = README.partition("## What is where\n```\n")[2].partition("```")[0]
    folder, seen = "", 0
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0] if line.startswith(" ") else line.split()[0]
        if not line.startswith(" "):
            folder = names
        for name in names.split():
            if re.search(r"[a-z](\.py|/)$", name):
                assert (ROOT / (folder if not line.startswith(" ") else folder + name)).exists(), name
                seen += 1
    assert seen > 20


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", README)) <= targets
