"""The tables of a reproduction and what they do not show, from its records alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.reproduce.checkpoint import EVIDENCE, LAST_LAYER
from benchmarks.reproduce.subjects import MODELS, REPORTED, TASKS
from laplora.report.names import display_name
from training.report.markdown import markdown_table

Record = Mapping[str, Any]
#: A model on a task: its records, one for each seed.
Pair = tuple[str, str]

_METRICS = {"accuracy": "ACC", "nll": "NLL", "ece": "ECE"}
#: The methods at the last checkpoint, in the order of the comparison; those that were not run are left out.
METHODS = (
    "map",
    "temperature",
    "conditioned",
    "mc_dropout",
    "ensemble",
    "seeds",
    LAST_LAYER,
    "laplace",
    EVIDENCE,
    "laplace_conditioned",
)
_NAMES = {
    "mc_dropout": "MC dropout",
    "ensemble": "checkpoint ensemble",
    "seeds": "ensemble of seeds",
    LAST_LAYER: "Laplace of lm_head alone",
    EVIDENCE: "Laplace, prior by evidence",
}
#: Rows of SST-2's validation split, from which calibration, test and training rows all come.
_SST2_ROWS = 872


def by_pair(records: Sequence[Record]) -> dict[Pair, list[Record]]:
    """Return the records by model and task, in the order of ``MODELS`` and ``TASKS``."""
    pairs = sorted(
        {(r["model"], r["task"]) for r in records}, key=lambda p: (list(MODELS).index(p[0]), list(TASKS).index(p[1]))
    )
    return {pair: [r for r in records if (r["model"], r["task"]) == pair] for pair in pairs}


def _last(record: Record, method: str) -> Mapping[str, Any] | None:
    """Return the scores of a method at the last checkpoint; None where it is not measured so far."""
    scores: Mapping[str, Any] | None = record["checkpoints"].get(str(record["steps"][-1]), {}).get(method)
    return scores


def _so_far(seeds: Sequence[Record]) -> str:
    """Return up to which step all seeds are measured where that is not the last; else nothing."""
    measured = min(max(map(int, record["checkpoints"]), default=0) for record in seeds)
    return "" if measured >= seeds[0]["steps"][-1] else f"; measured up to {measured:,} so far"


def what_was_run(records: Sequence[Record]) -> str:
    """Return a table of every model: the task it was trained on, how long and on how many rows; or that it was not."""
    lines, pairs = [], by_pair(records)
    for model in MODELS:
        of_model = {task: seeds for (name, task), seeds in pairs.items() if name == model}
        if not of_model:
            lines.append([f"`{model}`", "not run", "", "", "", ""])
        for task, seeds in of_model.items():
            first = seeds[0]
            rows = " / ".join(f"{first['rows'][part]:,}" for part in ("train", "calibration", "test"))
            steps = f"{first['steps'][-1]:,} of {first['batch_size']}, at {first['learning_rate']:g}{_so_far(seeds)}"
            seed = ", ".join(str(r["seed"]) for r in seeds)
            base = f"{first['quantization']}, {first['dtype']}, {first['device']}"
            lines.append([f"`{model}`", TASKS[task], steps, rows, seed, base])
    heading = ["model", "task", "steps", "rows (train / calibration / test)", "seeds", "base"]
    return markdown_table(heading, lines, left=range(6))


def beside_the_report(records: Sequence[Record], methods: Mapping[str, str], place: int) -> str:
    """Return figures on WinoGrande-S at the last checkpoint beside the report's, for every model and method.

    Args:
        methods: what stands beside the model in the row of each; place: of the report's figures in ``REPORTED``: 0
            fine-tuned, 1 Laplace.
    """
    pairs, lines = by_pair(records), []
    for model in MODELS:
        seeds = pairs.get((model, "winogrande_s"), [])
        theirs = [f"{value:.2f}" for value in REPORTED[model][place]] if model in REPORTED else [""] * 3
        for method, words in methods.items() if seeds else ():
            measured = [_last(record, method) for record in seeds]
            ours = [_mean(measured, name) or "not measured" for name in (*_METRICS, "gap")]
            lines.append([f"`{model}`", words, *ours, *theirs])
        if not seeds:
            lines.append([f"`{model}`", "not run", "", "", "", "", *theirs])
    heading = ["model", "", *_METRICS.values(), "confidence − accuracy", *(f"report's {t}" for t in _METRICS.values())]
    return markdown_table(heading, lines, left=(0, 1))


def of_methods(records: Sequence[Record], model: str, ensembles: Mapping[Pair, Mapping[str, Any]]) -> str:
    """Return one model's comparison of methods at the last checkpoint: a block of columns for each task."""
    pairs = {task: seeds for (name, task), seeds in by_pair(records).items() if name == model}
    lines = []
    for method in METHODS:
        cells: list[str] = []
        for task, seeds in pairs.items():
            ensemble = ensembles.get((model, task)) if method == "seeds" else None
            one = [ensemble] if ensemble else [_last(record, method) for record in seeds]
            cells += [_mean(one, name, interval=name == "nll") for name in (*_METRICS, "gap")]
        if any(cells):
            lines.append([_NAMES.get(method) or display_name(method), *cells])
    titles = [*_METRICS.values(), "confidence − accuracy"]
    return markdown_table(["method", *(f"{TASKS[task]} {title}" for task in pairs for title in titles)], lines)


def _mean(scores: Sequence[Mapping[str, Any] | None], metric: str, *, interval: bool = True) -> str:
    """Return a metric's mean over trainings; "" where one lacks it."""
    present = [one for one in scores if one]
    if len(present) < len(scores):
        return ""
    show = "{:+.3f}" if metric == "gap" else "{:.3f}"
    text = show.format(statistics.mean(one[metric] for one in present))
    if len(present) > 1:
        return f"{text} ± {statistics.stdev(one[metric] for one in present):.3f}"
    bounds = present[0]["intervals"].get(metric)
    return f"{text} ({show} to {show})".format(*bounds) if interval and bounds else text


def without_skill(task: str, seeds: Sequence[Record]) -> bool:
    """Return whether chance, on WinoGrande, is in the interval of every accuracy, by MAP and by Laplace."""
    scores = [_last(record, method) for record in seeds for method in ("map", "laplace")]
    accuracies = [one["intervals"]["accuracy"] if one else (1.0, 1.0) for one in scores]
    return task.startswith("winogrande") and all(low <= 0.5 <= high for low, high in accuracies)


def caveats(records: Sequence[Record]) -> str:
    """Return what the figures of a page do not show, in words."""
    pairs, notes = by_pair(records), []
    if models := [f"`{model}`" for (model, task), seeds in pairs.items() if without_skill(task, seeds)]:
        notes.append(f"{' and '.join(models)} have **no skill** on WinoGrande: chance is in each accuracy's interval.")
    for (_, task), seeds in pairs.items():
        rows = seeds[0]["rows"]
        if task == "sst2":
            notes.append("SST-2 is a development task: rules and defaults were chosen on it.")
        if task == "sst2" and len(seeds) > 1 and seeds[0].get("source", "").endswith("(validation)"):
            left = _SST2_ROWS - rows["calibration"] - rows["test"]
            notes.append(f"Its seeds' training rows overlap: each seed draws {rows['train']} of {left} rows.")
    if any(len(seeds) > 1 for seeds in pairs.values()):
        notes.append("The ± holds the randomness of training alone.")
    return " ".join(notes)
