"""The tables of an evaluation, by method in the order to show them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from laplora.metrics.label_sets import SetQuality
from laplora.metrics.scores import Evaluation
from laplora.report.names import display_name
from training.report.markdown import markdown_table

Bounds = tuple[float, float] | None

#: Heading -> (field of Evaluation and of its intervals, +1 where higher is better and -1 where lower is).
_COLUMNS = {
    "acc ↑": ("accuracy", 1),
    "NLL ↓": ("nll", -1),
    "ECE ↓": ("ece", -1),
    "Brier ↓": ("brier", -1),
    "KL ↓": ("kl", -1),
    "MAE ↓": ("mae", -1),
    "RPS ↓": ("rps", -1),
    "AUROC ↑": ("auroc_error", 1),
    "AURC ↓": ("aurc", -1),
}


def write_report(
    evaluations: Mapping[str, Evaluation], folder: Path, *, title: str, sets: Mapping[str, SetQuality], note: str
) -> None:
    """Write results.md, with a note under its title, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
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
    for heading in _columns(evaluations):
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
    return markdown_table(["method", *_columns(evaluations)], rows)


def _columns(evaluations: Mapping[str, Evaluation]) -> dict[str, tuple[str, int]]:
    """Return the columns of which a method has a figure."""
    every = evaluations.values()
    return {heading: of for heading, of in _COLUMNS.items() if any(getattr(one, of[0]) is not None for one in every)}


def _cells(evaluations: Mapping[str, Evaluation]) -> dict[str, list[tuple[str, Bounds, bool]]]:
    """Return by method, for each column, the value as text, its interval and whether it is the best as printed."""
    cells: dict[str, list[tuple[str, Bounds, bool]]] = {method: [] for method in evaluations}
    for key, sign in _columns(evaluations).values():
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
