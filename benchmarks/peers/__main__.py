"""Compare with peers: results.json beside this file, and its places in docs/evidence.md.

    python -m benchmarks.peers                    # both, on tiny models: a minute
    python -m benchmarks.peers --only laplace     # or bayesian_lora; the other keeps its results
    python -m benchmarks.peers --tables           # measures nothing: the page again, from results.json

Nothing here is a time, so a busy machine gives the same numbers, and parts may run side by side.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import provenance
from training.report.markdown import fill, markdown_table

FOLDER = Path(__file__).parent
PAGE = provenance.ROOT / "docs" / "evidence.md"
PARTS = {"laplace": "against_laplace", "bayesian_lora": "against_bayesian_lora"}
PACKAGES = {
    "laplace": ["laplace-torch", "curvlinops-for-pytorch"],
    "bayesian_lora": ["bayesian-lora"],
}
_MEASURED = "`{command}`, {date}, commit {commit}, {hardware}; {versions}."
SHARED = ["laplora", "torch", "transformers", "peft"]


def main(arguments: list[str] | None = None) -> None:
    """Run the chosen comparisons; those not chosen keep the results that are there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(PARTS), nargs="+", help="these peers alone")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the page again")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given = sys.argv[1:] if arguments is None else arguments
    for part in [] if options.tables else options.only or list(PARTS):
        print(f"{part} ...", flush=True)
        module = importlib.import_module(f"benchmarks.peers.{PARTS[part]}")
        begun = conditions(part, given)
        keep(part, {"measured": begun, **module.compare()})
    write_page()


def keep(part: str, result: dict[str, Any]) -> None:
    """Put one part's results in the place of its old ones; others may be written meanwhile."""
    path = FOLDER / "results.json"
    results = {**_read(path), part: result}
    ordered = {name: results[name] for name in PARTS if name in results}
    path.write_text(json.dumps(ordered, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_page() -> None:
    """Write the figures of docs/evidence.md from what was measured."""
    results = _read(FOLDER / "results.json")
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), "peers", page_tables(results)), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def conditions(part: str, arguments: list[str]) -> dict[str, Any]:
    """Return when, with what, from what and on what a comparison ran."""
    return {
        "date": provenance.today(),
        "commit": provenance.commit(),
        "command": shlex.join(["python", "-m", "benchmarks.peers", *arguments]),
        "hardware": f"{provenance.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread used",
        "versions": provenance.versions([*PACKAGES[part], *SHARED]),
    }


def page_tables(results: dict[str, Any]) -> dict[str, str]:
    """Return the table of docs/evidence.md, and what was measured when, by name."""
    tiny = results["laplace"]["tiny"]
    same = [
        ("`kron`, reduce", "`kfac_reduce`", "kfac_reduce, alone", ""),
        (
            "`full`",
            "`joint_core`, nothing left out",
            "joint_core, alone",
            "laplace-torch multiplies the GGN with a float32 identity",
        ),
    ]
    heading = ["laplace-torch", "laplora", "covariance", "evidence", "what is left"]
    rows = [[theirs, ours, *(f"{tiny[key][of]:.0e}" for of in heading[2:4]), left] for theirs, ours, key, left in same]
    return {
        "tiny": markdown_table(heading, rows),
        **{f"measured_{name}": _MEASURED.format_map(part["measured"]) for name, part in results.items()},
    }


if __name__ == "__main__":
    main()
