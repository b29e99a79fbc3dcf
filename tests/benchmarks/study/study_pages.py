"""A documentation folder to publish to, and what stands on its page."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study.pages.tables import TABLES


def empty_docs(folder: Path) -> Path:
    """Return a documentation folder whose page has every pair of markers and other text around them."""
    docs = folder / "docs"
    docs.mkdir(parents=True)
    parts = [f"<!-- study:begin {name} -->\n<!-- study:end {name} -->\n" for name in TABLES]
    (docs / "results.md").write_text("# Results\n\nbefore\n\n" + "\n".join(parts) + "\nafter\n", encoding="utf-8")
    return docs


def page_of(docs: Path) -> str:
    """Return the page."""
    return (docs / "results.md").read_text(encoding="utf-8")


def cells(table: str) -> list[list[str]]:
    """Return a Markdown table's lines as cells, the heading first, without the rule below it."""
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return [line for line in lines if not line[0].startswith("---")]
