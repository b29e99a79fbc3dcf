"""What a sweep is, and its page and plot: scores of some methods against a number, of one or more trainings each."""

from __future__ import annotations

import argparse
import json
import statistics
import textwrap
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness.pictures import save_picture
from laplora.files import write_json, write_whole
from training.report.markdown import markdown_table

#: JSON values of one measurement; a list of them is a sweep's results.json.
Record = dict[str, Any]
#: What a command is to measure: by a name that a file can have, what makes its records.
Jobs = Iterable[tuple[str, Callable[[], Sequence[Record]]]]
_BENCHMARKS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Point:
    """What one training scored.

    Attributes:
        panel: heading of the table and title of the panel that it is in; place: on the axis; method: a row's title.
        scores: by metric a value, or a value with its interval.
    """

    panel: str
    place: float
    method: str
    scores: Mapping[str, float | tuple[float, float, float]]


@dataclass(frozen=True)
class Sweep:
    """One benchmark: what it measures, and what its page says.

    Attributes:
        name: of its folder, in ``runs`` and here; text: the page's title and paragraphs.
        metrics: by the name in a point's scores as the table has them; the first one is drawn.
        jobs: what the command's options ask for; key: what two records of one measurement share, in the page's order.
        points: of all records.
    """

    name: str
    text: Sequence[str]
    axis: str
    metrics: Mapping[str, str]
    jobs: Callable[[argparse.Namespace], Jobs]
    key: Callable[[Record], Hashable]
    points: Callable[[Sequence[Record]], Iterable[Point]]

    @property
    def folder(self) -> Path:
        """Where results.json, RESULTS.md and the plot lie."""
        return _BENCHMARKS / self.name

    @property
    def runs(self) -> Path:
        """Where measured records are kept, a file for each job."""
        return Path("runs") / self.name

    def measure(self, options: argparse.Namespace) -> None:
        """Run the jobs that have no file yet: a stopped call continues."""
        for name, make in self.jobs(options):
            path = self.runs / f"{name}.json"
            if not path.is_file():
                write_json(path, list(make()))

    def publish(self) -> None:
        """Put what is in ``runs`` in its place among the committed records, and write all three files."""
        found = [r for path in sorted(self.runs.glob("*.json")) for r in json.loads(path.read_text(encoding="utf-8"))]
        merged = {self.key(record): record for record in [*self.committed(), *found]}
        records = [merged[key] for key in sorted(merged)]  # type: ignore[type-var]
        lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
        write_whole(self.folder / "results.json", f"[\n{lines}\n]\n")
        write_whole(self.folder / "RESULTS.md", self.page(records))
        save_picture(self.figure(records), self.folder / f"{self.name}.png")

    def committed(self) -> list[Record]:
        """Return the records of results.json."""
        path = self.folder / "results.json"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []

    def page(self, records: Sequence[Record]) -> str:
        """Return RESULTS.md: a table for each panel, a block of its rows for each metric."""
        title, *text = self.text
        how = f"Written by `python -m benchmarks.sweeps {self.name} --publish` from results.json."
        parts = [f"# {title}", how, *text, f"![{self.axis}]({self.name}.png)"]
        for panel, points in _by_panel(self.points(records)).items():
            places = sorted({point.place for point in points})
            rows = [
                [
                    title,
                    method,
                    *(
                        _cell(
                            [
                                p.scores[metric]
                                for p in points
                                if (p.method, p.place) == (method, place) and metric in p.scores
                            ]
                        )
                        for place in places
                    ),
                ]
                for metric, title in self.metrics.items()
                for method in dict.fromkeys(p.method for p in points if metric in p.scores)
            ]
            heading = ["", self.axis, *(f"{place:,g}" for place in places)]
            parts += [f"## {panel}", markdown_table(heading, rows, left=(0, 1))]
        filled = (p if p.startswith(("|", "#", "!", "-")) else textwrap.fill(p, 118) for p in parts if p)
        return "\n\n".join(part.strip("\n") for part in filled) + "\n"

    def figure(self, records: Sequence[Record]) -> Figure:
        """Return a panel for each table: the first metric against the axis, the mean of each method as a line."""
        panels = _by_panel(self.points(records))
        (metric, title), *_ = self.metrics.items()
        made = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
        for axes, (panel, points) in zip(made.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for method in dict.fromkeys(point.method for point in points):
                means: dict[float, list[float]] = {}
                for point in points:
                    if point.method == method and metric in point.scores:
                        means.setdefault(point.place, []).append(_value(point.scores[metric]))
                if means:
                    places = sorted(means)
                    axes.plot(places, [statistics.mean(means[place]) for place in places], ".-", label=method)
            axes.set_title(panel, fontsize=9)
            axes.set_xlabel(self.axis)
            axes.set_ylabel(title)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
        return made


def _by_panel(points: Iterable[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.panel, []).append(point)
    return found


def _value(score: float | tuple[float, float, float]) -> float:
    return score if isinstance(score, float | int) else score[0]


def _cell(scores: Sequence[float | tuple[float, float, float]]) -> str:
    """Return the mean, with ± the standard deviation of several trainings, or the interval of one that has one."""
    if not scores:
        return "-"
    text = f"{statistics.mean(map(_value, scores)):.3f}"
    if len(scores) > 1:
        return f"{text} ± {statistics.stdev(map(_value, scores)):.3f}"
    (one,) = scores
    return text if isinstance(one, float | int) else f"{text} [{one[1]:.3f}, {one[2]:.3f}]"
