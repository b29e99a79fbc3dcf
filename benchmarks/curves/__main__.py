"""``python -m benchmarks.curves``: calibration against the number of labels, and against optimizer steps.

    python -m benchmarks.curves --data FOLDER --labels 50 150 --seeds 0
    python -m benchmarks.curves --publish          # runs nothing: results.json, RESULTS.md and the plot

FOLDER is that of ``python -m benchmarks.evidence``. What is measured is kept in runs/curves: a stopped call continues.
The steps' figures are of ``python -m benchmarks.reproduce``, from docs/results/reproduction.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.curves.measure import LABELS, SEEDS, measure
from benchmarks.curves.page import publish
from benchmarks.evidence.__main__ import say

RUNS = Path("runs") / "curves"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing of the chosen trainings, or publish what is there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS), help="numbers of labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="one training each")
    parser.add_argument("--publish", action="store_true", help="run nothing: write the figures, the page and the plot")
    options = parser.parse_args(arguments)
    if options.publish:
        publish(RUNS)
        return
    if options.data is None:
        parser.error("--data FOLDER is needed but with --publish")
    torch.set_num_threads(1)
    for seed in options.seeds:
        for labels in options.labels:
            say(f"{labels} labels, seed {seed}")
            measure(options.data, labels, seed, RUNS)


if __name__ == "__main__":
    main(sys.argv[1:])
