"""``python -m benchmarks.sweeps NAME``: measure what is missing of one sweep, or publish what there is.

    python -m benchmarks.sweeps curves --data FOLDER --at 50 150 --seeds 0
    python -m benchmarks.sweeps curves --publish

FOLDER holds the data sets as their authors publish them (``benchmarks.evidence.rows``). What is measured is kept in
runs/NAME.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.sweeps.curves import CURVES
from benchmarks.sweeps.driver import Sweep

SWEEPS: dict[str, Sweep] = {sweep.name: sweep for sweep in (CURVES,)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure or publish."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweeps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=SWEEPS)
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--at", type=int, nargs="+", help="numbers of labels (default: the page's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training each")
    parser.add_argument("--publish", action="store_true", help="run nothing: write the figures, the page and the plot")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.publish:
        SWEEPS[options.name].publish()
    else:
        SWEEPS[options.name].measure(options)


if __name__ == "__main__":
    main()
