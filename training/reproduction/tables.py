"""The tables of a reproduction, from its records alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from laplora.report.names import display_name
from training.config.reproduced import MODELS, REPORTED, SHIFTED, TASKS, Figures
from training.report.markdown import markdown_table

Record = Mapping[str, Any]
#: A model on a task: its records, one for each seed.
Pair = tuple[str, str]

_METRICS = (("accuracy", "ACC"), ("nll", "NLL"), ("ece", "ECE"))
#: Of the last checkpoint, in the order of the comparison; those that were not run are left out.
METHODS = (
    "map",
    "temperature",
    "conditioned",
    "mc_dropout",
    "ensemble",
    "seeds",
    "laplace_last_layer",
    "laplace",
    "laplace_temperature",
    "laplace_conditioned",
)
_NAMES = {
    "ensemble": "checkpoint ensemble",
    "seeds": "ensemble of seeds",
    "laplace_last_layer": "Laplace of lm_head alone",
}


def by_pair(records: Sequence[Record]) -> dict[Pair, list[Record]]:
    """Return the records by model and task, in the order of ``MODELS`` and ``TASKS``."""
    pairs = sorted(
        {(r["model"], r["task"]) for r in records}, key=lambda p: (list(MODELS).index(p[0]), list(TASKS).index(p[1]))
    )
    return {pair: [r for r in records if (r["model"], r["task"]) == pair] for pair in pairs}


def method_name(method: str) -> str:
    """Return how a method is written."""
    return _NAMES.get(method) or display_name(method)


def last_step(record: Record) -> str:
    """Return the name of a record's last checkpoint."""
    return str(record["steps"][-1])


def _so_far(seeds: Sequence[Record]) -> str:
    """Return up to which step all seeds are measured where that is not the last; else nothing."""
    measured = min(max(map(int, record["checkpoints"]), default=0) for record in seeds)
    return "" if measured >= seeds[0]["steps"][-1] else f"; measured up to {measured:,} so far"


def what_was_run(records: Sequence[Record]) -> str:
    """Return a table of every model: the task it was trained on, how long and on how many rows; or that it was not."""
    lines, pairs = [], by_pair(records)
    for model in MODELS:
        own = {task: seeds for (name, task), seeds in pairs.items() if name == model}
        if not own:
            lines.append([f"`{model}`", "not run", "", "", "", "", ""])
        for task, seeds in own.items():
            first = seeds[0]
            rows = first["rows"]
            lines.append(
                [
                    f"`{model}`",
                    TASKS[task],
                    f"{first['steps'][-1]:,} of {first['batch_size']}, at {first['learning_rate']:g}{_so_far(seeds)}",
                    f"{rows['train']:,} / {rows['calibration']:,} / {rows['test']:,}",
                    ", ".join(str(r["seed"]) for r in seeds),
                    f"{first['quantization']}, {first['dtype']}",
                    first["device"],
                ]
            )
    heading = ["model", "task", "steps", "rows (train / calibration / test)", "seeds", "base", "device"]
    return markdown_table(heading, lines, left=range(7))


def beside_the_report(records: Sequence[Record], method: str, place: int) -> str:
    """Return a method's figures on WinoGrande-S at the last checkpoint beside the report's, for every model.

    ``place`` is that of the report's figures in ``REPORTED``: 0 fine-tuned, 1 Laplace.
    """
    pairs, lines = by_pair(records), []
    for model in MODELS:
        seeds = pairs.get((model, "winogrande_s"), [])
        reported: Figures | None = REPORTED[model][place] if model in REPORTED else None
        theirs = [f"{getattr(reported, name):.2f}" if reported else "" for name, _ in _METRICS]
        ours = [_pooled(seeds, method, name) if seeds else "not run" for name in ("accuracy", "nll", "ece", "gap")]
        steps = f"{seeds[0]['steps'][-1]:,}" if seeds and not _so_far(seeds) else "not yet" if seeds else ""
        lines.append([f"`{model}`", steps, *ours, *theirs])
    heading = [
        "model",
        "steps",
        "ACC",
        "NLL",
        "ECE",
        "confidence − accuracy",
        *(f"report's {title}" for _, title in _METRICS),
    ]
    return markdown_table(heading, lines)


def of_checkpoints(seeds: Sequence[Record], methods: Sequence[str] = ("map", "temperature", "laplace")) -> str:
    """Return one pair's table: accuracy, NLL, ECE and gap of the methods at every checkpoint that all seeds have."""
    steps = [step for step in seeds[0]["checkpoints"] if all(step in r["checkpoints"] for r in seeds)]
    lines = []
    for step in sorted(steps, key=int):
        for method in methods:
            if all(method in r["checkpoints"][step] for r in seeds):
                cells = [_pooled(seeds, method, name, step) for name in ("accuracy", "nll", "ece", "gap")]
                lines.append(["0 (base)" if step == "0" else f"{int(step):,}", method_name(method), *cells])
    return markdown_table(["step", "method", "ACC", "NLL", "ECE", "confidence − accuracy"], lines, left=(1,))


def of_methods(records: Sequence[Record], model: str, ensembles: Mapping[Pair, Mapping[str, Any]]) -> str:
    """Return one model's comparison of methods at the last checkpoint: a block of columns for each task."""
    pairs = {task: seeds for (name, task), seeds in by_pair(records).items() if name == model}
    lines = []
    for method in METHODS:
        cells = []
        for task, seeds in pairs.items():
            if method == "seeds":
                found = ensembles.get((model, task))
                cells += [_number(found[name], name) if found else "" for name, _ in _METRICS]
            else:
                cells += [_pooled(seeds, method, name) for name, _ in _METRICS]
        if any(cells):
            lines.append([method_name(method), *cells])
    heading = ["method", *(f"{TASKS[task]} {title}" for task in pairs for _, title in _METRICS)]
    return markdown_table(heading, lines)


def of_shift(seeds: Sequence[Record]) -> str:
    """Return the table of distribution shift of one model that was trained on OpenBookQA."""
    sets = [name for name in SHIFTED if all(name in r["shift"] for r in seeds)]
    lines = []
    for method in METHODS:
        if any(method in r["shift"][name]["methods"] for r in seeds for name in sets):
            own = [_pooled(seeds, method, metric) for metric, _ in _METRICS]
            others = [
                _spread([r["shift"][name]["methods"][method][metric] for r in seeds], metric)
                for name in sets
                for metric, _ in _METRICS
            ]
            lines.append([method_name(method), *own, *others])
    titles = [TASKS["openbookqa"], *(f"{SHIFTED[name][0]} ({seeds[0]['shift'][name]['rows']:,})" for name in sets)]
    return markdown_table(["method", *(f"{title} {metric}" for title in titles for _, metric in _METRICS)], lines)


def _pooled(seeds: Sequence[Record], method: str, metric: str, step: str | None = None) -> str:
    """Return a metric over the seeds, at the last step by default; "" where one lacks it. One seed has its interval."""
    found = [record["checkpoints"].get(step or last_step(record), {}).get(method) for record in seeds]
    if not all(found):
        return ""
    text = _spread([one[metric] for one in found if one], metric)
    if len(found) == 1 and found[0] and metric in found[0]["intervals"]:
        low, high = found[0]["intervals"][metric]
        text += f" ({_number(low, metric)} to {_number(high, metric)})"
    return text


def _spread(values: Iterable[float], metric: str) -> str:
    """Return the mean, and over several seeds ± the standard deviation between them."""
    values = list(values)
    text = _number(statistics.mean(values), metric)
    return f"{text} ± {statistics.stdev(values):.3f}" if len(values) > 1 else text


def _number(value: float, metric: str) -> str:
    return f"{value:+.3f}" if metric == "gap" else f"{value:.3f}"
