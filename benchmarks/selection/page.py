"""RESULTS.md and its plot, made of the committed figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence.plan import DEVELOPING
from laplora.files import write_whole
from training.report.markdown import markdown_table
from training.report.pictures import save_picture

FOLDER = Path(__file__).parent
PAGE, RESULTS, PLOT = FOLDER / "RESULTS.md", FOLDER / "results.json", FOLDER / "labels.png"

Figures = Mapping[str, Any]


def write_page(results: Mapping[str, Figures]) -> None:
    """Write the page and its plot."""
    write_whole(PAGE, render(results))
    save_picture(figure(results), PLOT)


def tasks_of(results: Mapping[str, Figures]) -> dict[str, list[Figures]]:
    """Return the units by task, developing tasks first."""
    found: dict[str, list[Figures]] = {}
    for unit in sorted(results, key=lambda name: (name.split("/")[0] not in DEVELOPING, name)):
        found.setdefault(unit.split("/")[0], []).append(results[unit])
    return found


def mean_curve(units: Sequence[Figures], method: str, number: int) -> list[float]:
    """Return a method's mean over units and draws: of NLL (0) or accuracy (1), by number of labels."""
    curves = [[point[number] for point in draw[method]] for unit in units for draw in unit["draws"]]
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]


def wins(units: Sequence[Figures], method: str, place: int) -> tuple[int, int]:
    """Return on how many draws a method has less NLL than random at a number of labels, and of how many."""
    pairs = [(draw[method][place][0], draw["random"][place][0]) for unit in units for draw in unit["draws"]]
    return sum(one < other for one, other in pairs), len(pairs)


def labels_needed(curve: Sequence[float], labels: Sequence[int], target: float) -> float | None:
    """Return how many labels a curve needs to reach an NLL for the first time, between points by a line; None: more."""
    for place, (nll, count) in enumerate(zip(curve, labels, strict=True)):
        if nll <= target:
            if place == 0:
                return 0.0
            share = (curve[place - 1] - target) / (curve[place - 1] - nll)
            return labels[place - 1] + share * (count - labels[place - 1])
    return None


def render(results: Mapping[str, Figures]) -> str:
    """Return the page."""
    parts = ["# Which rows to label next", *_HOW, "![NLL by number of labels](labels.png)", "## Test NLL by labels"]
    by_task = tasks_of(results)
    for task, units in by_task.items():
        labels, methods = units[0]["labels"], list(units[0]["draws"][0])
        half = "developing" if task in DEVELOPING else "reporting"
        models = f"{len(units)} trained model{'s' if len(units) > 1 else ''}"
        parts.append(f"### {task} ({half}; {models}, {_draws(units)} draws)")
        target = mean_curve(units, "random", 0)[-1]
        rows = []
        for method in methods:
            curve = mean_curve(units, method, 0)
            won, of = wins(units, method, labels.index(80))
            needed = labels_needed(curve, labels, target)
            rows.append(
                [
                    method,
                    *(f"{value:.4f}" for value in curve),
                    "" if method == "random" else f"{won} of {of}",
                    "more" if needed is None else f"{needed:.0f}",
                ]
            )
        head = ["method", *map(str, labels), "better than random at 80", f"labels to random's NLL at {labels[-1]}"]
        parts.append(markdown_table(head, rows))
        accuracy = [[m, *(f"{value:.3f}" for value in mean_curve(units, m, 1))] for m in methods]
        parts.append("Accuracy:")
        parts.append(markdown_table(["method", *map(str, labels)], accuracy))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _draws(units: Sequence[Figures]) -> int:
    return sum(len(unit["draws"]) for unit in units)


def figure(results: Mapping[str, Figures]) -> Figure:
    """Return a panel for each task: NLL by labels, a line for each method."""
    by_task = tasks_of(results)
    made = Figure(figsize=(3.6 * len(by_task), 3.6), layout="constrained")
    panels = made.subplots(1, len(by_task), squeeze=False)[0]
    for panel, (task, units) in zip(panels, by_task.items(), strict=True):
        for method in units[0]["draws"][0]:
            style = {"color": "black", "linewidth": 2} if method == "random" else {}
            panel.plot(units[0]["labels"], mean_curve(units, method, 0), ".-", label=method, **style)
        panel.set_title(task, fontsize=10)
        panel.set_xlabel("labels bought", fontsize=8)
        panel.tick_params(labelsize=8)
    panels[0].set_ylabel("test NLL, nats", fontsize=8)
    panels[-1].legend(fontsize=7)
    return made


_HOW = (
    "Written by `python -m benchmarks.selection` from results.json. A user has a model that was trained on 300 rows, "
    "150 labelled calibration rows, and 600 rows without labels. Which of the 600 are worth a label?",
    "No model is trained again: labels condition the linearised posterior of the values' `lora_B` weights in closed "
    "form (`laplora.conditioning`), on the arrays of the [evidence study](../evidence/RESULTS.md). It stands for a "
    "training on more rows; the predictive `conditioned` moves less, through the last state alone. Each method orders "
    "the 600 rows once, by what the trained model says of them. The 150 rows and the first n of the order then "
    "condition the model, which answers 500 test rows. How far labels may move the model is fixed for each trained "
    "model and draw, for all methods alike. `random` is the mean of three orders. Figures are means over trained "
    "models (after 3 and after 8 epochs, of each seed that has run) and three draws of the calibration rows; the draws "
    "of a model share its pool and test rows, so they are no independent trials. The default, `information`, was "
    "looked at on emotion and sst2 alone. Batches that are chosen together, by what their labels tell jointly, were "
    "measured beside these, and need as many labels (sst2: 96 against 95).",
)
