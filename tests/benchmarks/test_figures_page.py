"""benchmarks/README.md: every page with a table is named there, and every command there exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from benchmarks.speed.__main__ import PARTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "benchmarks" / "README.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_every_page_with_a_table_is_listed() -> None:
    linked = {(PAGE.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)", TEXT)}
    assert all(path.is_file() for path in linked)
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    with_tables = {p for p in pages if re.search(r"^\| ---", p.read_text(encoding="utf-8"), re.MULTILINE)}
    assert len(with_tables) > 10
    assert {str(p.relative_to(ROOT)) for p in with_tables - linked - {PAGE}} == set()


def test_every_command_exists() -> None:
    modules = set(re.findall(r"python -m ([\w.]+)", TEXT))
    assert len(modules) > 5
    assert [m for m in modules if importlib.util.find_spec(m) is None] == []
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)", TEXT)) <= set(targets)
    assert set(re.findall(r"benchmarks.speed --only ([a-z]+)`", TEXT)) == set(PARTS)
