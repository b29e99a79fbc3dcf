"""Markdown for the study's tables: lines of cells, means over seeds, text that cannot end a cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation over seeds; ``spread`` is None for one seed, ``mean`` where nothing was measured."""

    mean: float | None
    spread: float | None
    seeds: int

    def text(self, all_seeds: int) -> str:
        """Return "0.376 ± 0.012", with the number of seeds where they are not all; a dash where there are none."""
        if self.mean is None:
            return "-"
        spread = "" if self.spread is None else f" ± {self.spread:.3f}"
        return f"{self.mean:.3f}{spread}" + (f" ({self.seeds})" if self.seeds < all_seeds else "")


def over_seeds(values: Iterable[float | None]) -> Cell:
    """Return the values of several seeds as one cell; None: not measured."""
    found = [v for v in values if v is not None]
    spread = stdev(found) if len(found) > 1 else None
    return Cell(fmean(found) if found else None, spread, len(found))


def markdown_table(lines: Sequence[Sequence[str]], left: set[int] | None = None) -> str:
    """Return lines of cells, the heading first; the columns of ``left`` are left-aligned, by default the first."""
    kept = {0} if left is None else left
    rule = ["---" if i in kept else "---:" for i in range(len(lines[0]))]
    return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], rule, *lines[1:]])


def escaped(value: str) -> str:
    """Return text that cannot end a table's cell."""
    return value.replace("|", "\\|").replace("\n", " ")
