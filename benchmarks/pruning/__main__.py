"""``python -m benchmarks.pruning``: trains without 0, 3, 6, 10 and 15 of SmolLM2-135M's 30 layers, and measures.

    python -m benchmarks.pruning --layers 0 15
    python -m benchmarks.pruning --publish              # runs nothing: results.json, RESULTS.md and the plot

Runs are kept in runs/pruning: a stopped call continues. What an answer costs is measured in turns, of every artifact
that is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.pruning.measure import COUNTS, answer_times, measure
from benchmarks.pruning.page import publish

RUNS = Path("runs") / "pruning"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen numbers of layers, or publish what is there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=list(COUNTS), help="numbers of layers to remove")
    parser.add_argument("--out", type=Path, default=RUNS, help=f"folder of the runs (default: {RUNS})")
    parser.add_argument("--publish", action="store_true", help="run nothing: write the figures and the page")
    options = parser.parse_args(arguments)
    if options.publish:
        publish(options.out)
        return
    torch.set_num_threads(1)
    for count in options.layers:
        measure(count, options.out)
    answer_times(options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
