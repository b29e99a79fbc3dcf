"""Run the benchmarks and write benchmarks/RESULTS.md and results.json; parts not run keep their figures."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import shlex
import subprocess
import sys

import torch

from benchmarks.peers.__main__ import processor
from benchmarks.speed.record import Conditions, Record, versions, write

PARTS = ("predict", "fast", "subset", "peers", "fit", "memory", "growth", "large", "mixed", "server", "start")
#: What ``--quick`` runs unless parts are named.
QUICK_PARTS = ("predict", "peers", "fit")


def main(arguments: list[str] | None = None) -> None:
    """Run the chosen parts; each record is written as soon as it is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", help="these parts alone")
    parser.add_argument("--quick", action="store_true", help="few sizes, some minutes")
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    parts = options.only or (QUICK_PARTS if options.quick else PARTS)
    if len(parts) > 1:  # each in a process of its own: what one part leaves behind would slow the next one down
        for part in parts:
            quick = ["--quick"] if options.quick else []
            subprocess.run([sys.executable, "-m", "benchmarks.speed", "--only", part, *quick], check=True)
        return
    conditions = conditions_here(given)
    for record in importlib.import_module(f"benchmarks.speed.{parts[0]}").run(conditions, quick=options.quick):
        print(line(record), flush=True)
        write([record])


def line(record: Record) -> str:
    """Return a record as a line of the console."""
    verdict = "" if record.met is None else (" met" if record.met else " MISSED")
    target = f" (target {record.target})" if record.target else ""
    return f"{record.name}: {record.value} [{record.low} to {record.high}] x {record.baseline}{target}{verdict}"


def conditions_here(
    arguments: list[str], *, module: str = "benchmarks.speed", hardware: str | None = None
) -> Conditions:
    """Return this moment, and this machine unless another name for it is given."""
    measured = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", module, *arguments]),
        "threads": str(torch.get_num_threads()),
        "versions": versions(("torch", "transformers", "peft", "bitsandbytes")),
    }
    return Conditions(hardware or f"{processor()}, {os.cpu_count()} cores", measured)


if __name__ == "__main__":
    main()
