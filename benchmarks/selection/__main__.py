"""``python -m benchmarks.selection``: simulate every trained model of the evidence study that is there, and publish.

Needs runs/evidence (``python -m benchmarks.evidence``). What is simulated is kept in runs/selection; ``--publish`` runs
nothing and writes results.json, RESULTS.md and the plot from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.gather import gathered
from benchmarks.evidence.outputs import read_outputs
from benchmarks.evidence.plan import DEVELOPING, REPORTED, SEEDS, Unit, trainings, units
from benchmarks.selection.page import RESULTS, write_page
from benchmarks.selection.simulate import LABELS, SUBSET, Simulation, simulate
from laplora.files import write_json

RUNS = Path("runs") / "selection"
#: Labels of a trained model; draws of its calibration rows.
BUDGET, DRAWS = 450, 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate what is missing, and publish."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("--task", nargs="+", choices=(*DEVELOPING, *REPORTED), default=[*DEVELOPING, *REPORTED])
    parser.add_argument("--publish", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not options.publish:
        for unit in found_units(options.task):
            run(unit)
    results = {str(unit): json.loads(path(unit).read_text()) for unit in _units() if path(unit).is_file()}
    write_json(RESULTS, results)
    write_page(results)


def found_units(tasks: Sequence[str]) -> Iterator[Unit]:
    """Yield the trained models whose arrays hold Gram matrices."""
    for unit in _units():
        if unit.training.task in tasks and gathered(unit) and (unit.folder / f"gram.{SUBSET}.safetensors").is_file():
            yield unit


def _units() -> Iterator[Unit]:
    for training in trainings((*DEVELOPING, *REPORTED), (BUDGET,), SEEDS):
        yield from units(training)


def path(unit: Unit) -> Path:
    """Return where the figures of a unit are kept."""
    return RUNS / f"{str(unit).replace('/', '-')}.json"


def run(unit: Unit) -> None:
    """Simulate a unit's draws, unless it is done."""
    if path(unit).is_file():
        return
    began = time.monotonic()
    outputs = read_outputs(unit)
    figures: dict[str, Any] = {"draws": []}
    for draw in range(DRAWS):
        one = Simulation(outputs, draw)
        figures["draws"].append({name: list(map(list, curve.values())) for name, curve in simulate(one).items()})
    write_json(path(unit), figures | {"labels": list(LABELS)})
    print(f"{unit}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
