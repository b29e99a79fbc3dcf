"""results.json, RESULTS.md and its plot: lines against labels, and against epochs beside them."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.curves.measure import EPOCHS, TASK, Record, measured
from benchmarks.reproduce.tables import caveats
from laplora.errors import DataError
from laplora.files import write_whole
from training.report.markdown import markdown_table
from training.report.pictures import save_picture

FOLDER = Path(__file__).parent
PAGE, RESULTS, PLOT = FOLDER / "RESULTS.md", FOLDER / "results.json", FOLDER / "curves.png"
#: Written by ``python -m benchmarks.reproduce --publish``; of its trainings those of this model on this task.
REPRODUCED = FOLDER.parents[1] / "docs" / "results" / "reproduction.json"
MODEL, STEPS_TASK = "smollm2-135m", "sst2"
METHODS = {
    "map": "MAP",
    "temperature": "temperature scaling",
    "conditioned": "temperature, conditioned",
    "laplace": "Laplace",
}
_COLOURS = {"map": "#c44e52", "temperature": "#dd8452", "conditioned": "#55a868", "laplace": "#2a6fb0"}
_METRICS = {"accuracy": "accuracy", "nll": "NLL, nats", "ece": "ECE", "gap": "confidence − accuracy"}
_PANELS = ("accuracy", "nll", "ece")


@dataclass(frozen=True)
class Line:
    """What one training scored against something.

    Attributes:
        seed: of the training; points: by place on the axis the metrics of every method.
    """

    seed: int
    points: Mapping[float, Mapping[str, Mapping[str, Any]]]


def publish(folder: Path) -> None:
    """Put the figures of a folder of results in the place of the committed ones, and write all three files.

    Raises:
        DataError: nothing was measured.
    """
    records = {(r["labels"], r["seed"]): r for r in [*committed(), *measured(folder)]}
    if not records:
        raise DataError(f"no results in {folder}: 'python -m benchmarks.curves --data FOLDER' makes them")
    every = [records[key] for key in sorted(records)]
    reproduced = json.loads(REPRODUCED.read_text(encoding="utf-8"))["records"]
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in every)
    write_whole(RESULTS, f"[\n{lines}\n]\n")
    write_whole(PAGE, render(every, reproduced))
    save_picture(figure(every, reproduced), PLOT)


def committed() -> list[Record]:
    """Return what was published before."""
    return list(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.is_file() else []


def by_labels(records: Sequence[Record]) -> list[Line]:
    """Return a line for each seed: its trainings' scores against their labels."""
    seeds = sorted({record["seed"] for record in records})
    return [Line(s, {r["labels"]: r["methods"] for r in records if r["seed"] == s}) for s in seeds]


def by_epochs(reproduced: Sequence[Record]) -> list[Line]:
    """Return a line for each seed: its checkpoints' scores against passes over the training rows; 0 is the base."""
    own = [r for r in reproduced if (r["model"], r["task"]) == (MODEL, STEPS_TASK)]
    return [
        Line(
            r["seed"],
            {int(step) * r["batch_size"] / r["rows"]["train"]: of for step, of in r["checkpoints"].items()},
        )
        for r in own
    ]


def render(records: Sequence[Record], reproduced: Sequence[Record]) -> str:
    """Return the page."""
    labels, epochs = by_labels(records), by_epochs(reproduced)
    rows = next(r["rows"] for r in reproduced if (r["model"], r["task"]) == (MODEL, STEPS_TASK))
    parts = [
        "# Calibration against training and against labels",
        "Written by `python -m benchmarks.curves --publish`. SmolLM2-135M in 4 bit, the posterior's structure `ekfac`, "
        "learning rate 3e-4, batches of 6. Thick lines are means over seeds, thin ones the seeds; ± is the standard "
        "deviation between them. A seed draws its training rows, initial adapter and order; test rows are the same "
        "for all, and ± does not hold their noise. Much of an ECE is the noise of the test rows.",
        "![accuracy, NLL and ECE against epochs and against labels](curves.png)",
        f"## Against epochs: SST-2, {_count(epochs)}",
        f"{rows['train']} rows train, {rows['calibration']} calibrate, {rows['test']} test; one training a seed, its "
        "checkpoints measured as they come ([all of them](../../docs/reproduction.md)), so the learning rate falls "
        "to 0 at the last one. 0 epochs is the base.",
        caveats([r for r in reproduced if (r["model"], r["task"]) == (MODEL, STEPS_TASK)]),
        *_tables(epochs, "epochs", "g"),
        f"## Against labels: {TASK.upper()}, {_count(labels)}",
        f"Two thirds of the labels train, for {EPOCHS} epochs, and one third calibrates; {records[0]['rows']['test']} "
        "rows test. Rows, prompt and labels are those of [the evidence study](../evidence/RESULTS.md). A number in "
        "parentheses says of how many trainings a figure is, where it is not of all.",
        *_tables(labels, "labels", ",g"),
    ]
    return "\n\n".join(p if p.startswith(("|", "#", "!")) else textwrap.fill(p, 118) for p in parts) + "\n"


def _count(lines: Sequence[Line]) -> str:
    return f"{len(lines)} trainings" if len(lines) > 1 else "one training"


def _tables(lines: Sequence[Line], axis: str, form: str) -> list[str]:
    """Return a table for each metric: methods against the axis."""
    places = _places(lines)
    return [
        markdown_table(
            [f"{title}; {axis}", *(format(place, form) for place in places)],
            [[name, *(_cell(lines, place, method, metric) for place in places)] for method, name in METHODS.items()],
        ).strip("\n")
        for metric, title in _METRICS.items()
    ]


def _places(lines: Sequence[Line]) -> list[float]:
    return sorted({place for line in lines for place in line.points})


def _cell(lines: Sequence[Line], place: float, method: str, metric: str) -> str:
    """Return the mean over seeds and its spread; with the number of seeds where not all are there."""
    values = _values(lines, place, method, metric)
    if not values:
        return "-"
    text = f"{statistics.mean(values):.3f}"
    text += f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return text if len(values) == len(lines) else f"{text} ({len(values)})"


def _values(lines: Sequence[Line], place: float, method: str, metric: str) -> list[float]:
    return [of[method][metric] for line in lines if method in (of := line.points.get(place, {}))]


def figure(records: Sequence[Record], reproduced: Sequence[Record]) -> Figure:
    """Return two rows of panels: against epochs and against labels."""
    made = Figure(figsize=(11, 6.2), layout="constrained")
    panels = made.subplots(2, len(_PANELS), squeeze=False)
    axes = (("epochs (0: the base), SST-2", by_epochs(reproduced)), (f"labels, {TASK.upper()}", by_labels(records)))
    for row, (title, lines) in zip(panels, axes, strict=True):
        for panel, metric in zip(row, _PANELS, strict=True):
            _draw(panel, lines, metric)
            panel.set_xlabel(title, fontsize=9)
            panel.set_ylabel(_METRICS[metric], fontsize=9)
            panel.grid(alpha=0.3)
    for panel in panels[1]:
        panel.set_xscale("log")
        counts = _places(axes[1][1])
        panel.set_xticks(counts, [f"{count:,g}" for count in counts])
        panel.minorticks_off()
    handles, names = panels[0][0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside upper center", ncols=len(METHODS), frameon=False)
    return made


def _draw(panel: Axes, lines: Sequence[Line], metric: str) -> None:
    for method, name in METHODS.items():
        for line in lines if len(lines) > 1 else ():
            own = sorted((place, of[method][metric]) for place, of in line.points.items() if method in of)
            panel.plot(*zip(*own, strict=True), color=_COLOURS[method], alpha=0.25, linewidth=1)
        shared = [p for p in _places(lines) if len(_values(lines, p, method, metric)) == len(lines)]
        means = [statistics.mean(_values(lines, p, method, metric)) for p in shared]
        panel.plot(shared, means, ".-", color=_COLOURS[method], label=name)
