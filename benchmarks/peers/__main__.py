"""Compare with peers and write RESULTS.md and results.json beside this file."""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.tables import render

FOLDER = Path(__file__).parent
PARTS = {"laplace": "against_laplace", "bayesian_lora": "against_bayesian_lora", "brier": "against_brier"}
PACKAGES = {
    "laplace": ["laplace-torch", "curvlinops-for-pytorch"],
    "bayesian_lora": ["bayesian-lora"],
    "brier": ["brier"],
}
SHARED = ["laplora", "torch", "transformers", "peft"]


def main(arguments: list[str] | None = None) -> None:
    """Run the chosen comparisons; those not chosen keep the results that are there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", choices=list(PARTS), help="one peer alone")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = FOLDER / "results.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for part in [options.only] if options.only else list(PARTS):
        print(f"{part} ...", flush=True)
        module = importlib.import_module(f"benchmarks.peers.{PARTS[part]}")
        results[part] = {"measured": conditions(part, arguments), **module.compare()}
        path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (FOLDER / "RESULTS.md").write_text(render(results), encoding="utf-8")


def conditions(part: str, arguments: list[str] | None) -> dict[str, Any]:
    """Return when, with what and on what a comparison ran."""
    given = sys.argv[1:] if arguments is None else arguments
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks.peers", *given]),
        "hardware": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread used",
        "versions": {name: importlib.metadata.version(name) for name in [*PACKAGES[part], *SHARED]},
    }


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
