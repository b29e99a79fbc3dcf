"""The report of an evaluation, by method in the order to show them: tables, a reliability and a risk-coverage plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich import box
from rich.console import Console
from rich.table import Table

from laplora.metrics.label_sets import SetQuality
from laplora.metrics.scores import Evaluation
from laplora.report.names import display_name
from training.report.markdown import markdown_table

Bounds = tuple[float, float] | None

_COLORS = {"zero_shot": "#8c8c8c", "map": "#c44e52", "temperature": "#dd8452", "laplace": "#2a6fb0"}
_OTHERS = ("#55a868", "#8172b3", "#937860", "#da8bc3", "#64b5cd", "#ccb974")
_BAR = "#7ba6d0"
_TOP = "#1f4e79"
#: Gap -> (face, edge and hatch colour, hatch, legend). Opaque: over a bar a see-through colour becomes another one.
_OVER = ("#f3c9cf", "#d1495b", "///", "gap: overconfident")
_UNDER = ("#cbe3cf", "#3a7d44", "\\\\\\", "gap: underconfident")

#: Heading -> (field of Evaluation and of its intervals, +1 where higher is better and -1 where lower is).
_COLUMNS = {
    "acc ↑": ("accuracy", 1),
    "NLL ↓": ("nll", -1),
    "ECE ↓": ("ece", -1),
    "Brier ↓": ("brier", -1),
    "AUROC ↑": ("auroc_error", 1),
    "AURC ↓": ("aurc", -1),
}


def write_report(
    evaluations: Mapping[str, Evaluation], folder: Path, *, title: str, sets: Mapping[str, SetQuality], note: str
) -> None:
    """Write reliability.png, risk_coverage.png and results.md, with a note under its title, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    reliability_figure(evaluations, title=title).savefig(folder / "reliability.png", dpi=150)
    risk_coverage_figure(evaluations, title=title).savefig(folder / "risk_coverage.png", dpi=150)
    parts = (f"# {title}\n", f"{note}\n", results_table(evaluations), sets_table(evaluations, sets))
    (folder / "results.md").write_text("\n".join(parts), encoding="utf-8")


def print_table(evaluations: Mapping[str, Evaluation], *, title: str) -> None:
    """Print the table on the terminal: the best value of each column bold, intervals in grey beneath."""
    table = Table(
        title=title,
        caption="grey: 95 % bootstrap interval; NLL in nats; AUROC and AURC: ranking of the mistakes; bold: best",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    # Folded, never cut: four methods fit 80 columns, and a narrow terminal still shows every digit.
    table.add_column("method", overflow="fold")
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", overflow="fold")
    for method, cells in _cells(evaluations).items():
        values = [f"[bold]{text}[/bold]" if best else text for text, _, best in cells]
        beneath = [f"[dim]{_interval(bounds, 2)}[/dim]" for _, bounds, _ in cells]
        table.add_row(display_name(method), *map("\n".join, zip(values, beneath, strict=True)))
    Console().print(table)


def results_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the table as Markdown: the best value of each column bold, 95 % bootstrap intervals in brackets."""
    rows = [
        [display_name(method), *(_bracketed(f"**{text}**" if best else text, bounds) for text, bounds, best in cells)]
        for method, cells in _cells(evaluations).items()
    ]
    return markdown_table(["method", *_COLUMNS], rows)


def _cells(evaluations: Mapping[str, Evaluation]) -> dict[str, list[tuple[str, Bounds, bool]]]:
    """Return by method, for each column, the value as text, its interval and whether it is the best as printed."""
    cells: dict[str, list[tuple[str, Bounds, bool]]] = {method: [] for method in evaluations}
    for key, sign in _COLUMNS.values():
        texts = {method: _text(getattr(evaluation, key)) for method, evaluation in evaluations.items()}
        printed = [sign * float(text) for text in texts.values() if text != "-"]
        for method, text in texts.items():
            best = text != "-" and len(printed) > 1 and sign * float(text) == max(printed)
            cells[method].append((text, evaluations[method].intervals.get(key), best))
    return cells


def sets_table(evaluations: Mapping[str, Evaluation], sets: Mapping[str, SetQuality]) -> str:
    """Return a second table as Markdown: the average precision of finding the mistakes, and the label sets."""
    rows = [
        [
            display_name(method),
            _bracketed(_text(evaluations[method].auprc_error), evaluations[method].intervals.get("auprc_error")),
            _bracketed(_text(quality.coverage), quality.intervals["coverage"]),
            _bracketed(_text(quality.mean_size), quality.intervals["mean_size"]),
        ]
        for method, quality in sets.items()
    ]
    return markdown_table(["method", "AUPRC of mistakes ↑", "set coverage", "set size ↓"], rows)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(bounds: Bounds, digits: int) -> str:
    """Return an interval without leading zeros, or ""."""
    return "–".join(f"{v:.{digits}f}".removeprefix("0") for v in bounds or ())


def _bracketed(text: str, bounds: Bounds) -> str:
    return f"{text} [{_interval(bounds, 3)}]" if bounds else text


def reliability_figure(evaluations: Mapping[str, Evaluation], *, title: str) -> Figure:
    """Return one reliability diagram per method: accuracy per confidence bin, gap to confidence, rows per bin."""
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
