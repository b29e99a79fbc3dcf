"""``python -m benchmarks.evidence``: train, gather, answer, and publish what is finished.

    python -m benchmarks.evidence --data FOLDER                          # everything; days on two cores
    python -m benchmarks.evidence --data FOLDER --task trec --budget 450 --seed 0
    python -m benchmarks.evidence --publish                              # runs nothing: figures, page and plots

FOLDER holds the data sets as their authors publish them (``rows``). Every step keeps what it made in runs/evidence, so
a stopped call continues. A training is claimed by the process that does it: two calls can run side by side. Gram
matrices (``--also laplace``) take from 20 MB to 5 GB a trained model, by its rows and classes, and up to 21 GB more
while they are made. They may be deleted once its answers are there; methods that come later then have none of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from benchmarks.evidence.answers import answer
from benchmarks.evidence.folds import run_folds
from benchmarks.evidence.gather import gather, gathered
from benchmarks.evidence.jacobians import run_jacobians
from benchmarks.evidence.layers import run_layers
from benchmarks.evidence.orders import run_orders
from benchmarks.evidence.page import write_page
from benchmarks.evidence.passes import run_passes
from benchmarks.evidence.plan import ADDED_SEEDS, BUDGETS, SEEDS, Training, trainings, units
from benchmarks.evidence.results import publish
from benchmarks.evidence.retrained import run_retrained
from benchmarks.evidence.scores import score
from benchmarks.evidence.student import run_student
from benchmarks.evidence.tasks import TASKS
from laplora.errors import DataError

#: What is left out unless it is asked for: each costs more than everything else.
_ALSO = {
    "laplace": run_jacobians,
    "layers": run_layers,
    "passes": run_passes,
    "orders": run_orders,
    "retrained": run_retrained,
    "folds": run_folds,
    "student": run_student,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen trainings, or publish."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--task", choices=list(TASKS), nargs="+", default=list(TASKS), help="these tasks alone")
    parser.add_argument("--budget", type=int, choices=BUDGETS, nargs="+", default=list(BUDGETS), help="labels")
    every = (*SEEDS, *ADDED_SEEDS)
    parser.add_argument("--seed", type=int, choices=every, nargs="+", help=f"default: {SEEDS}; of --publish: all")
    parser.add_argument(
        "--also",
        choices=list(_ALSO),
        nargs="+",
        default=[],
        help="laplace: posteriors over the LoRA weights; layers: review scores by distances after layers; passes: "
        "members by dropout, SWAG and TFB; orders: questions with their options in reverse too; retrained: a training "
        "on all labels of the first draw; folds: that and five more, each without a fifth of them; student: these, and "
        "one that learns their average from other rows",
    )
    parser.add_argument("--publish", action="store_true", help="run nothing: write the figures and the page")
    options = parser.parse_args(arguments)
    seeds = options.seed or (every if options.publish else SEEDS)
    chosen = list(trainings(options.task, options.budget, seeds))
    if options.publish:
        found = [unit for training in chosen for unit in units(training) if gathered(unit)]
        for unit in found:
            answer(unit, say)
        write_page(publish(score(unit) for unit in found))
        return
    if options.data is None:
        parser.error("--data FOLDER is needed but with --publish")
    torch.set_num_threads(1)
    for training in chosen:
        run(training, options.data, options.also)


def run(training: Training, data: Path, also: Sequence[str] = ()) -> None:
    """Do what is left of one training, unless another process is at it, or its task has too few rows."""
    training.folder.mkdir(parents=True, exist_ok=True)
    place = f"{training.task}/{training.budget}/{training.seed}"

    def tell(line: str) -> None:
        say(f"{place}: {line}")

    try:
        with FileLock(training.folder / "claimed.lock", timeout=0):
            for step in (gather, *(_ALSO[name] for name in also)):
                step(training, data, tell)
            for unit in units(training):
                answer(unit, say)
    except Timeout:
        tell("another process is at it")
    except DataError as error:
        tell(f"left out: {error}")


def say(line: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
