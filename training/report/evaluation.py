"""The report of an evaluation: a table for the terminal and Markdown, a reliability diagram, a risk-coverage plot.

Input everywhere: method name -> Evaluation, in the order to show them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich import box
from rich.console import Console
from rich.table import Table

from laplora.errors import DataError
from laplora.metrics.scores import Evaluation
from training.calibration.label_sets import SetQuality
from training.report.markdown import markdown_table

_NAMES = {
    "zero_shot": "zero-shot",
    "map": "MAP",
    "temperature": "temperature scaling",
    "fast": "fast (distilled Laplace)",
    "fast_served": "fast as served",
    "laplace": "Laplace",
    "laplace_temperature": "Laplace + temperature",
    "ensemble": "ensemble",
    "ensemble_temperature": "ensemble + temperature",
    "laplace_ensemble": "Laplace ensemble",
    "mc_dropout": "MC dropout",
}
_COLORS = {"zero_shot": "#8c8c8c", "map": "#c44e52", "temperature": "#dd8452", "laplace": "#2a6fb0"}
_OTHERS = ("#55a868", "#8172b3", "#937860", "#da8bc3", "#64b5cd", "#ccb974")
_BAR = "#7ba6d0"
_TOP = "#1f4e79"
#: Gap -> (face, edge and hatch colour, hatch, legend). Opaque: over a bar a see-through colour becomes another one.
_OVER = ("#f3c9cf", "#d1495b", "///", "gap: overconfident")
_UNDER = ("#cbe3cf", "#3a7d44", "\\\\\\", "gap: underconfident")

#: Heading -> (key in Evaluation.intervals, value, +1 where higher is better and -1 where lower is).
_COLUMNS: dict[str, tuple[str, Callable[[Evaluation], float | None], int]] = {
    "acc ↑": ("accuracy", lambda e: e.accuracy, 1),
    "NLL ↓": ("nll", lambda e: e.nll, -1),
    "ECE ↓": ("ece", lambda e: e.ece, -1),
    "Brier ↓": ("brier", lambda e: e.brier, -1),
    "AUROC ↑": ("auroc_error", lambda e: e.auroc_error, 1),
    "AURC ↓": ("aurc", lambda e: e.risk_coverage.area, -1),
}


def display_name(method: str) -> str:
    """Return how a method is written: "MAP" for "map", "Laplace (evidence, group)" for "laplace_evidence_group"."""
    if method in _NAMES:
        return _NAMES[method]
    if method.endswith("_order_average"):
        return f"{display_name(method.removesuffix('_order_average'))}, order average"
    head, *rest = method.split("_")
    name = _NAMES.get(head, head)
    return f"{name} ({', '.join(rest)})" if rest else name


def write_report(
    evaluations: Mapping[str, Evaluation],
    folder: Path,
    *,
    title: str,
    sets: Mapping[str, SetQuality] | None = None,
    note: str = "",
) -> list[Path]:
    """Write reliability.png, risk_coverage.png and results.md into a folder and return their paths.

    Args:
        sets: of the methods that have label sets.
        note: a sentence under the title of results.md.

    Raises:
        DataError: no evaluations.
    """
    _checked(evaluations)
    folder.mkdir(parents=True, exist_ok=True)
    reliability, coverage, results = (folder / n for n in ("reliability.png", "risk_coverage.png", "results.md"))
    reliability_figure(evaluations, title=title).savefig(reliability, dpi=150)
    risk_coverage_figure(evaluations, title=title).savefig(coverage, dpi=150)
    parts = [f"# {title}\n", f"{note}\n" if note else "", results_table(evaluations)]
    if sets:
        parts.append(sets_table(evaluations, sets))
    results.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    return [reliability, coverage, results]


def results_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the table as Markdown: the best value of each column bold, 95 % bootstrap intervals in brackets.

    acc, NLL (nats), ECE, Brier; AUROC and AURC (area under the risk-coverage curve) of each method's score.
    """
    rows = [
        [display_name(method), *(f"{'**' * cell.best}{cell.value}{'**' * cell.best}{cell.bracketed}" for cell in cells)]
        for method, cells in _cells(evaluations).items()
    ]
    return markdown_table(["method", *_COLUMNS], rows)


def sets_table(evaluations: Mapping[str, Evaluation], sets: Mapping[str, SetQuality]) -> str:
    """Return a second table as Markdown: the average precision of finding the mistakes, and the label sets.

    coverage: share of rows whose conformal set holds the label; set size: labels in it. In brackets 95 % intervals.
    """
    rows = []
    for method, quality in sets.items():
        evaluation = evaluations[method]
        values = (
            (evaluation.auprc_error, evaluation.intervals.get("auprc_error")),
            (quality.coverage, quality.intervals.get("coverage")),
            (quality.mean_size, quality.intervals.get("mean_size")),
        )
        cells = [_Cell("-" if v is None else f"{v:.3f}", bounds, best=False) for v, bounds in values]
        rows.append([display_name(method), *(cell.value + cell.bracketed for cell in cells)])
    return markdown_table(["method", "AUPRC of mistakes ↑", "set coverage", "set size ↓"], rows)


def print_table(evaluations: Mapping[str, Evaluation], *, title: str, console: Console | None = None) -> None:
    """Print the table on the terminal: the best value of each column bold, intervals in grey beneath."""
    table = Table(
        title=title,
        caption="grey: 95 % bootstrap interval; NLL in nats; AUROC and AURC: ranking of the mistakes; bold: best",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 1),
        pad_edge=False,
        collapse_padding=True,
    )
    # Folded, never cut: four methods fit 80 columns, and a narrow terminal still shows every digit.
    table.add_column("method", overflow="fold")
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", overflow="fold")
    for method, cells in _cells(evaluations).items():
        row = [
            f"{f'[bold]{cell.value}[/bold]' if cell.best else cell.value}\n[dim]{cell.interval(2)}[/dim]"
            for cell in cells
        ]
        table.add_row(display_name(method), *row)
    (console or Console()).print(table)


def reliability_figure(evaluations: Mapping[str, Evaluation], *, title: str) -> Figure:
    """Return one reliability diagram per method: accuracy per confidence bin, gap to confidence, rows per bin."""
    _checked(evaluations)
    columns = min(4, len(evaluations))
    rows = -(-len(evaluations) // columns)
    # A lone panel still leaves room for the title and the legend.
    figure = Figure(figsize=(max(6.4, 3.3 * columns + 0.6), 4.4 * rows + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    used = [b for e in evaluations.values() for b in e.reliability if b.count]
    # Two classes never have a confidence below one half: start at the first bin in use.
    left = min(b.lower for b in used)
    most = max(b.count for b in used)
    grid = figure.subplots(
        2 * rows, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [3, 1.1] * rows}
    )
    for i, (method, evaluation) in enumerate(evaluations.items()):
        upper, lower = grid[2 * (i // columns), i % columns], grid[2 * (i // columns) + 1, i % columns]
        _draw_bins(upper, evaluation, method, first=i % columns == 0)
        _draw_counts(lower, evaluation, most, first=i % columns == 0)
        lower.set_xlim(left, 1)
    for empty in range(len(evaluations), rows * columns):
        for half in (0, 1):
            grid[2 * (empty // columns) + half, empty % columns].set_axis_off()
    handles = [
        Line2D([], [], color=_TOP, linewidth=2, label="accuracy"),
        *(Patch(facecolor=f, edgecolor=e, hatch=h, label=label) for f, e, h, label in (_OVER, _UNDER)),
        Line2D([], [], color="black", linestyle="--", linewidth=1, label="perfect calibration"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, 2 * columns), frameon=False, fontsize=9)
    return figure


def risk_coverage_figure(evaluations: Mapping[str, Evaluation], *, title: str) -> Figure:
    """Return the error rate among the rows answered, as the least certain rows are left out."""
    _checked(evaluations)
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=12, fontweight="bold")
    others = iter(_OTHERS * len(evaluations))
    for method, evaluation in evaluations.items():
        curve = evaluation.risk_coverage
        axes.plot(
            curve.coverage.tolist(),
            curve.risk.tolist(),
            color=_COLORS.get(method) or next(others),
            # Temperature scaling ranks two classes exactly as MAP does: dashes keep both visible.
            linestyle="--" if method == "temperature" else "-" if method in _COLORS else ":",
            linewidth=2.2 if method in _COLORS else 1.5,
            label=f"{display_name(method)}: AURC {curve.area:.3f}",
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("coverage: share of rows answered, most certain first")
    axes.set_ylabel("risk: error rate among them")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _draw_bins(axes: Axes, evaluation: Evaluation, method: str, *, first: bool) -> None:
    """Draw accuracy bars and the shaded gap to the mean confidence of each bin."""
    for b in evaluation.reliability:
        if b.accuracy is None or b.confidence is None:
            continue
        middle, width = (b.lower + b.upper) / 2, b.upper - b.lower
        axes.bar(middle, b.accuracy, width=width, color=_BAR, edgecolor="white", linewidth=0.8)
        face, edge, hatch, _ = _OVER if b.confidence > b.accuracy else _UNDER
        bottom, height = min(b.confidence, b.accuracy), abs(b.confidence - b.accuracy)
        axes.bar(middle, height, bottom=bottom, width=width, color=face, edgecolor=edge, hatch=hatch, linewidth=0.8)
        axes.hlines(b.accuracy, b.lower, b.upper, color=_TOP, linewidth=2)
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    axes.set_ylim(0, 1)
    axes.set_title(
        f"{display_name(method)}\nECE {evaluation.ece:.3f}   NLL {evaluation.nll:.3f}   acc {evaluation.accuracy:.3f}",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if first:
        axes.set_ylabel("accuracy", fontsize=9)


def _draw_counts(axes: Axes, evaluation: Evaluation, most: int, *, first: bool) -> None:
    """Draw how many rows each bin holds, with the number above its bar."""
    for b in evaluation.reliability:
        if not b.count:
            continue
        middle = (b.lower + b.upper) / 2
        axes.bar(middle, b.count, width=b.upper - b.lower, color="#b0b0b0", edgecolor="white", linewidth=0.8)
        axes.text(middle, b.count + 0.03 * most, str(b.count), ha="center", va="bottom", fontsize=6.5, rotation=90)
    # Room for the number above the tallest bar.
    axes.set_ylim(0, 1.5 * most)
    axes.set_xlabel("confidence", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    # A shared axis would label the last row of panels only.
    axes.tick_params(labelsize=8, labelbottom=True)
    if first:
        axes.set_ylabel("rows", fontsize=9)


@dataclass(frozen=True)
class _Cell:
    """One value of the table as text, its bootstrap interval, and whether it is its column's best as printed."""

    value: str
    bounds: tuple[float, float] | None
    best: bool

    def interval(self, digits: int) -> str:
        """Return the interval with that many digits and no leading zeros, or ""."""
        return "" if self.bounds is None else "–".join(f"{v:.{digits}f}".removeprefix("0") for v in self.bounds)

    @property
    def bracketed(self) -> str:
        """The interval as Markdown puts it behind the value, or ""."""
        return f" [{self.interval(3)}]" if self.bounds else ""


def _cells(evaluations: Mapping[str, Evaluation]) -> dict[str, list[_Cell]]:
    """Return method -> its cells in the order of ``_COLUMNS``."""
    _checked(evaluations)
    result: dict[str, list[_Cell]] = {method: [] for method in evaluations}
    for key, value_of, sign in _COLUMNS.values():
        shown = {m: "-" if (v := value_of(e)) is None else f"{v:.3f}" for m, e in evaluations.items()}
        numbers = [sign * float(text) for text in shown.values() if text != "-"]
        for method, evaluation in evaluations.items():
            text = shown[method]
            best = text != "-" and len(numbers) > 1 and sign * float(text) == max(numbers)
            result[method].append(_Cell(text, evaluation.intervals.get(key), best))
    return result


def _checked(evaluations: Mapping[str, Evaluation]) -> None:
    if not evaluations:
        raise DataError("a report needs at least one evaluated method, got none")
