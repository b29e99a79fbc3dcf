"""``python -m benchmarks.later``: labels that come after training, which condition it or train it anew.

    python -m benchmarks.later --data FOLDER --task trec --seed 1
    python -m benchmarks.later --publish                         # runs nothing: results.json, RESULTS.md and the plot

FOLDER is that of ``python -m benchmarks.evidence``. Its trainings are taken from runs/evidence, and made where there
are none. What is measured is kept in runs/later: a stopped call continues.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.evidence.__main__ import say
from benchmarks.evidence.plan import SEEDS, Training
from benchmarks.evidence.tasks import TASKS
from benchmarks.later.measure import measure
from benchmarks.later.page import publish

RUNS = Path("runs") / "later"
#: Labels that the adapter had: 300 trained it, 150 calibrate.
BUDGET = 450
#: Labels that come later.
LATER = (50, 150, 500, 1000, 2000)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing of the chosen trainings, or publish what is there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.later", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--task", choices=list(TASKS), nargs="+", default=["trec"])
    parser.add_argument("--seed", type=int, choices=SEEDS, nargs="+", default=list(SEEDS))
    parser.add_argument("--labels", type=int, nargs="+", default=list(LATER), help="numbers of labels that come later")
    parser.add_argument("--publish", action="store_true", help="run nothing: write the figures and the page")
    options = parser.parse_args(arguments)
    if options.publish:
        publish(json.loads(path.read_text(encoding="utf-8")) for path in RUNS.glob("*/*/*.json"))
        return
    if options.data is None:
        parser.error("--data FOLDER is needed but with --publish")
    torch.set_num_threads(1)
    for seed in options.seed:
        for task in options.task:
            measure(Training(task, BUDGET, seed), options.data, options.labels, RUNS / task / str(seed), say)


if __name__ == "__main__":
    main(sys.argv[1:])
