"""Publish the comparison of structures: the JSON file, the tables in docs/results.md and the plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.pages.approximation_plot import write_approximation_plot
from benchmarks.study.pages.tables import insert_tables, page_tables
from benchmarks.study.results.approximation_records import merge_approximation, read_approximation, write_approximation


def publish_approximation(results: Sequence[dict[str, Any]], docs: Path) -> list[Path]:
    """Add comparisons of structures to what is published, and return the files written.

    Written: ``approximation.json`` and ``approximation.png`` in ``docs/results``, the tables in ``docs/results.md``.

    Args:
        results: as ``benchmarks.study.compute.approximation.compare`` returns them; a task and seed that is published
            is replaced.

    Raises:
        DataError: results that are something else, a damaged published file, or a page without the tables' markers.
    """
    folder, page = docs / "results", docs / "results.md"
    text = page.read_text(encoding="utf-8")
    insert_tables(text, page_tables(folder))  # a page without its markers is refused before anything is written
    records = merge_approximation(read_approximation(folder), results)
    files = [write_approximation(records, folder)]
    files += write_approximation_plot(read_approximation(folder), folder)
    page.write_text(insert_tables(text, page_tables(folder)), encoding="utf-8")
    return [*files, page]
