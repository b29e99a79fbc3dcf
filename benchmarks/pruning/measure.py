"""One training without a number of layers: its test figures, the bytes of its base, and what one answer takes.

The test figures are those of the run's own evaluation. Everything else is of the artifact, as a server loads it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.estimate.shapes import held_bytes
from benchmarks.harness import provenance
from benchmarks.harness.timing import in_turns, spread
from laplora.artifact.folder import read_artifact
from laplora.files import write_json
from laplora.models.base import load_base_model, locate_base
from laplora.predictor import Predictor
from training.config import RunConfig, load_config
from training.run import run
from training.workspace.pruning import REMOVED

CONFIG = provenance.ROOT / "training" / "configs" / "sst2-smollm2.yaml"
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
    "predictives.fast=0",
)
#: The methods that are compared, by their names in an evaluation.
METHODS = ("map", "temperature", "laplace")
_SCORES = ("accuracy", "nll", "ece")
#: Turns in which every artifact answers once.
TURNS = 30
#: The packages that times and figures depend on.
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")

Record = dict[str, Any]


def configuration(count: int, out: Path, overrides: Sequence[str] = OVERRIDES) -> RunConfig:
    """Return the run without ``count`` layers, in a folder."""
    places = [f"name=pruned-{count}", f"runs={out / 'runs'}", f"artifacts={out / 'artifacts'}"]
    return load_config(CONFIG, [*places, *overrides, f"base.prune_layers={count}"])


def measure(count: int, out: Path, overrides: Sequence[str] = OVERRIDES) -> Record:
    """Train, evaluate and package one run, and write ``N.json`` with its figures; what is there is not made again.

    Returns the record: ``removed`` layers with their ``distance`` (None without), by method each score with the
    ``low`` and ``high`` of its 95 % interval over test rows, and the ``bytes`` of the base, packed and expanded.
    """
    path = out / f"{count}.json"
    if path.is_file():
        kept: Record = json.loads(path.read_text(encoding="utf-8"))
        return kept
    config = configuration(count, out, overrides)
    artifact = config.artifact_dir if config.artifact_dir.is_dir() else run(config)  # what a run writes last
    folder = config.run_dir
    evaluation = json.loads((folder / "report" / "evaluation.json").read_text(encoding="utf-8"))
    removed = folder / REMOVED
    record = {
        "count": count,
        "removed": list(read_artifact(artifact).manifest.removed_layers),
        "distance": json.loads(removed.read_text(encoding="utf-8"))["distance"] if removed.is_file() else None,
        "rows": evaluation["map"]["rows"],
        "methods": {method: _scores(evaluation[method]) for method in METHODS},
        "bytes": {
            name: base_bytes(artifact, dequantize) for name, dequantize in (("packed", False), ("expanded", True))
        },
        "date": provenance.today(),
        "commit": provenance.commit(),
        "versions": provenance.versions(PACKAGES),
    }
    write_json(path, record)
    return record


def base_bytes(artifact: Path, dequantize: bool) -> int:
    """Return the bytes of the base's weights as a server loads them for an artifact, its embeddings among them."""
    spec = read_artifact(artifact).manifest.base
    device = torch.device("cpu")
    return held_bytes(load_base_model(locate_base(spec), spec, device=device, dequantize=dequantize).model)


def answer_times(out: Path, turns: int = TURNS) -> Record:
    """Write ``times.json``: what one MAP answer takes of every artifact there, all of them in one process, in turns.

    Returns milliseconds by number of layers (``median``, ``low`` and ``high`` of the turns), the processor's time on
    one thread. ``relative`` is a turn's time over that of the artifact with all layers, where there is one.
    """
    artifacts = {path.stem: _artifact(path, out) for path in sorted(out.glob("[0-9]*.json"), key=lambda p: int(p.stem))}
    answers = {name: _one_answer(artifact) for name, artifact in artifacts.items()}
    with torch.no_grad():
        seconds = in_turns(answers, turns, clock=time.process_time)
    whole = seconds.get("0")
    record = {
        "turns": turns,
        "hardware": provenance.hardware(),
        "date": provenance.today(),
        "times": {name: _spread([1e3 * second for second in of]) for name, of in seconds.items()},
        "relative": {
            name: _spread([one / all_layers for one, all_layers in zip(of, whole, strict=True)])
            for name, of in seconds.items()
            if whole
        },
    }
    write_json(out / "times.json", record)
    return record


def _artifact(record: Path, out: Path) -> Path:
    (artifact,) = out.glob(f"artifacts/pruned-{record.stem}")
    return artifact


def _one_answer(artifact: Path) -> Callable[[], object]:
    """Return what answers the artifact's first recorded input by MAP, its tokens known."""
    predictor = Predictor.load(artifact, device="cpu")
    inputs = json.loads((artifact / "golden.json").read_text(encoding="utf-8"))["answers"][0]["inputs"]
    return partial(predictor.predict, [predictor.encode(inputs, truncate=True)], "map")


def _scores(evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    intervals = evaluation["intervals"]
    return {
        score: {"value": evaluation[score], "low": intervals[score][0], "high": intervals[score][1]}
        for score in _SCORES
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = asdict(spread(values))
    return {"median": found["value"], "low": found["low"], "high": found["high"]}
