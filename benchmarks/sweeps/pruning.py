"""Layers removed before fine-tuning: what each number of them costs in quality, and saves in time and memory.

The test figures are those of a run's own evaluation. Everything else is of the artifact, as a server loads it; what an
answer takes is measured in turns, of every artifact that is there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.estimate.shapes import held_bytes
from benchmarks.harness import provenance
from benchmarks.harness.timing import in_turns, spread
from benchmarks.sweeps.driver import Jobs, Point, Record, Sweep
from laplora.artifact.folder import read_artifact
from laplora.models.base import load_base_model, locate_base
from laplora.predictor import Predictor
from laplora.report.names import display_name
from training.config import RunConfig, load_config
from training.report.markdown import markdown_table
from training.run import run

#: Layers that are removed.
COUNTS = (0, 3, 6, 10, 15)
#: Of the ready configuration, what is otherwise here.
OVERRIDES = (
    "data.train=300",
    "data.calibration=150",
    "data.test=372",
    "optimizer.steps=300",
    "optimizer.learning_rate=3e-4",
    "adapter.targets=[q_proj,v_proj,lm_head]",
)
METHODS = ("map", "temperature", "laplace")
_SCORES = ("accuracy", "nll", "ece")
#: Turns in which every artifact answers once.
TURNS = 30
_PANEL = "SST-2"


def jobs(options: argparse.Namespace) -> Jobs:
    """Yield one training for each number of layers, then the times of all artifacts."""
    counts = options.at or COUNTS
    for count in counts:
        yield f"{count}", partial(measure, count, PRUNING.runs)
    yield f"times-{'-'.join(map(str, counts))}", partial(answer_times, counts, PRUNING.runs)


def configuration(count: int, out: Path, overrides: Sequence[str] = OVERRIDES) -> RunConfig:
    """Return the run without ``count`` layers, in a folder."""
    places = [f"name=pruned-{count}", f"runs={out / 'runs'}", f"artifacts={out / 'artifacts'}"]
    file = provenance.ROOT / "training" / "configs" / "sst2-smollm2.yaml"
    return load_config(file, [*places, *overrides, f"base.prune_layers={count}"])


def measure(count: int, out: Path, overrides: Sequence[str] = OVERRIDES) -> list[Record]:
    """Train, evaluate and package one run, and return its record.

    ``removed`` layers, by method each score with the ``low`` and ``high`` of its 95 % interval over test rows, and the
    ``bytes`` of the base, packed and expanded.
    """
    config = configuration(count, out, overrides)
    artifact = run(config)
    evaluation = json.loads((config.run_dir / "report" / "evaluation.json").read_text(encoding="utf-8"))
    sizes = {name: base_bytes(artifact, dequantize) for name, dequantize in (("packed", False), ("expanded", True))}
    record = {
        "count": count,
        "removed": list(read_artifact(artifact).manifest.removed_layers),
        "rows": evaluation["map"]["rows"],
        "methods": {method: _scores(evaluation[method]) for method in METHODS},
        "bytes": sizes,
        "date": provenance.today(),
        "commit": provenance.commit(),
        "versions": provenance.versions(("torch", "transformers", "peft", "bitsandbytes")),
    }
    return [record]


def base_bytes(artifact: Path, dequantize: bool) -> int:
    """Return the bytes of the base's weights as a server loads them for an artifact, its embeddings among them."""
    spec = read_artifact(artifact).manifest.base
    device = torch.device("cpu")
    return held_bytes(load_base_model(locate_base(spec), spec, device=device, dequantize=dequantize).model)


def answer_times(
    counts: Sequence[int], out: Path, overrides: Sequence[str] = OVERRIDES, turns: int = TURNS
) -> list[Record]:
    """Return what one MAP answer takes of every artifact, all of them in one process, in turns.

    Milliseconds (``median``, ``low`` and ``high`` of the turns) are the processor's time on one thread; ``relative`` is
    a turn's time over that of the artifact with all layers.
    """
    answers = {str(count): _one_answer(configuration(count, out, overrides).artifact_dir) for count in counts}
    with torch.no_grad():
        seconds = in_turns(answers, turns, clock=time.process_time)
    where = {"turns": turns, "hardware": provenance.hardware(), "date": provenance.today()}
    return [
        {
            "times_of": int(name),
            "ms": _spread([1e3 * second for second in of]),
            "relative": _spread([one / whole for one, whole in zip(of, seconds["0"], strict=True)]),
            **where,
        }
        for name, of in seconds.items()
        if "0" in seconds
    ]


def _one_answer(artifact: Path) -> Callable[[], object]:
    """Return what answers the artifact's first recorded input by MAP, its tokens known."""
    predictor = Predictor.load(artifact, device="cpu")
    inputs = json.loads((artifact / "golden.json").read_text(encoding="utf-8"))["answers"][0]["inputs"]
    return partial(predictor.predict, [predictor.encode(inputs, truncate=True)], "map")


def _scores(evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    bounds = {s: evaluation["intervals"].get(s, [evaluation[s]] * 2) for s in _SCORES}  # the ECE has no interval
    return {s: {"value": evaluation[s], "low": low, "high": high} for s, (low, high) in bounds.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = asdict(spread(values))
    return {"median": found["value"], "low": found["low"], "high": found["high"]}


def points(records: Sequence[Record]) -> Iterable[Point]:
    """Yield each run's scores by method, with their intervals."""
    for record in records:
        for method, scores in record.get("methods", {}).items():
            values = {name: (one["value"], one["low"], one["high"]) for name, one in scores.items()}
            yield Point(_PANEL, record["count"], display_name(method), values)


def notes(records: Sequence[Record]) -> dict[str, str]:
    """Return the table of what removed layers save."""
    times = {record["times_of"]: record for record in records if "times_of" in record}
    rows = []
    for record in (record for record in records if "methods" in record):
        removed, timed = record["removed"], times.get(record["count"])
        rows.append(
            [
                record["count"],
                f"{removed[0]} to {removed[-1]}" if removed else "none",
                *(f"{record['bytes'][name] / 1e6:.0f}" for name in ("packed", "expanded")),
                "-" if timed is None else "{median:.0f} [{low:.0f}, {high:.0f}]".format(**timed["ms"]),
                "-" if timed is None else "{median:.2f} [{low:.2f}, {high:.2f}]".format(**timed["relative"]),
                f"{record['date']}, `{record['commit']}`",
            ]
        )
    heading = ["layers removed", "which, from 0", "4 bit, MB", "expanded, MB", "an answer, ms", "of all layers'", "run"]
    return {_PANEL: markdown_table(heading, rows)}


PRUNING = Sweep(
    name="pruning",
    text=(
        "Fewer layers: what they cost and what they save",
        "SmolLM2-135M-Instruct has 30 layers. N of them are removed before fine-tuning ([how they are "
        "chosen](../../docs/training.md#fewer-layers)), on SST-2: 300 rows train, 150 calibrate, 372 test; NF4, LoRA "
        "on `q_proj`, `v_proj` and `lm_head`, 300 steps at 3e-4. Each N is *one* training with one seed. The "
        "brackets are 95 % intervals over the test rows alone: another seed moves every figure again. Nothing was "
        "chosen on the test rows: no N is recommended here.",
        "Bytes are those of the base's weights, embeddings included, which no layer holds. An answer is one MAP "
        "prediction of a short prompt, the processor's time on one thread: the median of 30 turns in which every "
        "artifact answers once, and in brackets the fastest and the slowest. The machine was busy with other work.",
    ),
    axis="layers removed",
    metrics={"nll": "NLL, nats", "accuracy": "accuracy", "ece": "ECE"},
    jobs=jobs,
    key=lambda record: ("times_of" in record, record.get("times_of", record.get("count"))),
    points=points,
    notes=notes,
)
