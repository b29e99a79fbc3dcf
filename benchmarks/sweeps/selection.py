"""Which rows to label next: what labels are worth in each method's order, simulated on the evidence study's models."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from benchmarks.evidence.gather import gathered
from benchmarks.evidence.outputs import read_outputs
from benchmarks.evidence.plan import DEVELOPING, REPORTED, Unit, trainings, units
from benchmarks.sweeps.driver import Jobs, Point, Record, Sweep
from benchmarks.sweeps.labelling import SUBSET, Simulation, simulate

#: Labels of a trained model; draws of its calibration rows.
BUDGET, DRAWS = 450, 3
_TASKS = (*DEVELOPING, *REPORTED)
_METHODS = ("random", "information", "entropy")


def jobs(options: argparse.Namespace) -> Jobs:
    """Yield every trained model whose arrays hold Gram matrices."""
    for training in trainings(_TASKS, (BUDGET,), tuple(options.seeds)):
        for unit in units(training):
            if gathered(unit) and (unit.folder / f"gram.{SUBSET}.safetensors").is_file():
                yield str(unit).replace("/", "-"), partial(measure, unit)


def measure(unit: Unit) -> list[Record]:
    """Return by method the curves of test NLL and accuracy of each draw of a unit's calibration rows."""
    outputs, records = read_outputs(unit), []
    for draw in range(DRAWS):
        for method, curve in simulate(Simulation(outputs, draw)).items():
            values = {str(labels): values for labels, values in curve.items()}
            records.append({"unit": str(unit), "draw": draw, "method": method, "curve": values})
    return records


def _task(record: Record) -> str:
    return str(record["unit"]).partition("/")[0]


def points(records: Sequence[Record]) -> Iterable[Point]:
    """Yield each draw's scores by method and number of labels, developing tasks first."""
    for record in records:
        half = "developing" if _task(record) in DEVELOPING else "reporting"
        for labels, (nll, accuracy) in record["curve"].items():
            scores = {"nll": nll, "accuracy": accuracy}
            yield Point(f"{_task(record)} ({half})", int(labels), record["method"], scores)


def notes(records: Sequence[Record]) -> Mapping[str, str]:
    """Return for each task how many labels each method needs to be where all random ones lead."""
    found = {}
    for task in dict.fromkeys(map(_task, records)):
        own = [record for record in records if _task(record) == task]
        curves = {method: mean_curve(own, method) for method in dict.fromkeys(r["method"] for r in own)}
        last = max(curves["random"])
        needed = {name: labels_needed(curve, curves["random"][last]) for name, curve in curves.items()}
        texts = [f"{n} {'more' if c is None else f'{c:.0f}'}" for n, c in needed.items() if n != "random"]
        half = "developing" if task in DEVELOPING else "reporting"
        models, draws = len({r["unit"] for r in own}), len({(r["unit"], r["draw"]) for r in own})
        found[f"{task} ({half})"] = (
            f"Labels to the NLL of {last} random ones: {', '.join(texts)}. {models} trained model"
            f"{'s' if models > 1 else ''}, {draws} draws."
        )
    return found


def mean_curve(records: Sequence[Record], method: str) -> dict[int, float]:
    """Return a method's mean NLL over units and draws, by number of labels."""
    curves = [record["curve"] for record in records if record["method"] == method]
    return {int(labels): sum(curve[labels][0] for curve in curves) / len(curves) for labels in curves[0]}


def labels_needed(curve: Mapping[int, float], target: float) -> float | None:
    """Return how many labels a curve needs to reach an NLL for the first time, between points by a line; None: more."""
    before: tuple[int, float] | None = None
    for labels, nll in curve.items():
        if nll <= target:
            if before is None:
                return 0.0
            return before[0] + (before[1] - target) / (before[1] - nll) * (labels - before[0])
        before = labels, nll
    return None


SELECTION = Sweep(
    name="selection",
    text=(
        "Which rows to label next",
        "A user has a model that was trained on 300 rows, 150 labelled calibration rows, and 600 rows without "
        "labels. Which of the 600 are worth a label? No model is trained again: labels condition the linearised "
        "posterior of the values' `lora_B` weights in closed form (`laplora.conditioning`), on the arrays of the "
        "[evidence study](../evidence/RESULTS.md). It stands for a training on more rows; the predictive "
        "`conditioned` moves less, through the last state alone. Each method orders the 600 rows once, by what the "
        "trained model says of them. The 150 rows and the first n of the order then condition the model, which "
        "answers 500 test rows. How far labels may move the model is fixed for each trained model and draw, for all "
        "methods alike. `random` is the mean of three orders. Figures are means over trained models (after 3 and "
        "after 8 epochs, of each seed that has run) and three draws of the calibration rows, ± their standard "
        "deviation, which is mostly that of models and draws: the draws of a model share its pool and test rows. The "
        "default, `information`, was looked at on emotion and sst2 alone.",
    ),
    axis="labels bought",
    metrics={"nll": "NLL, nats", "accuracy": "accuracy"},
    jobs=jobs,
    key=lambda r: (
        _task(r) not in DEVELOPING,
        r["unit"],
        r["draw"],
        ("random", "information", "entropy").index(r["method"]),
    ),
    points=points,
    notes=notes,
)
