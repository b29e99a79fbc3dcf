"""Run the benchmarks and write benchmarks/RESULTS.md and results.json; parts not run keep their figures.

python -m benchmarks.speed                      # or: make bench; every part
python -m benchmarks.speed --only fit server    # these parts alone
python -m benchmarks.speed --quick              # or: make bench QUICK=1; few sizes, some minutes, into
                                                # runs/bench-quick: nothing published changes
python -m benchmarks.speed --pages              # measures nothing: the pages again, from results.json
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import provenance
from benchmarks.harness.page import PAGE
from benchmarks.harness.record import FOLDER, conditions_here, keep, read, write
from benchmarks.speed import published

PARTS = ("predict", "pool", "peers", "fit", "large", "server", "overload", "path", "start", "workers")
#: The parts that ``--quick`` runs unless others are named.
QUICK_PARTS = ("predict", "peers", "fit", "overload")


def main(arguments: list[str] | None = None) -> None:
    """Run the chosen parts; each record is written as soon as it is there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", help="these parts alone")
    parser.add_argument("--quick", action="store_true", help="few sizes, some minutes; nothing published changes")
    parser.add_argument("--pages", action="store_true", help="measure nothing, write the pages again")
    parser.add_argument("--out", type=Path, help="folder of the figures (default: benchmarks, or runs/bench-quick)")
    options = parser.parse_args(arguments)
    out = options.out or (provenance.SCRATCH if options.quick else FOLDER)
    parts = () if options.pages else options.only or (QUICK_PARTS if options.quick else PARTS)
    quick = ["--quick"] if options.quick else []
    if len(parts) > 1:  # each in a process of its own: what one part leaves behind would slow the next one down
        for part in parts:
            command = [sys.executable, "-m", "benchmarks.speed", "--only", part, "--out", str(out)]
            subprocess.run([*command, *quick], check=True)
        print(f"\n{(out / PAGE).read_text(encoding='utf-8')}" if options.quick else f"written: {out / PAGE}")
        return
    for part in parts:
        conditions = dataclasses.replace(conditions_here(["--only", part, *quick]), out=out)
        measured = importlib.import_module(f"benchmarks.speed.parts.{part}").run(conditions, quick=options.quick)
        for record in keep(measured, out):
            print(record.line, flush=True)
    if options.pages:
        write(read(out), out)
    if out == FOLDER:
        published.PAGE.write_text(published.with_figures(published.PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
