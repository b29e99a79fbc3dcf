"""Compare with laplace-torch: results.json beside this file, and its places in docs/evidence.md.

    python -m benchmarks.peers                    # on tiny models: a minute
    python -m benchmarks.peers --tables           # measures nothing: the page again, from results.json

Nothing here is a time, so a busy machine gives the same numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import provenance
from benchmarks.harness.record import conditions_here
from training.report.markdown import fill, markdown_table

FOLDER = Path(__file__).parent
PAGE = provenance.ROOT / "docs" / "evidence.md"
PACKAGES = ("laplace-torch", "curvlinops-for-pytorch", "laplora")
_MEASURED = "`{command}`, {date}, commit {commit}, {hardware}; {versions}."


def main(arguments: list[str] | None = None) -> None:
    """Compare, keep the results and write the figures of docs/evidence.md."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the page again")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = FOLDER / "results.json"
    if not options.tables:
        from benchmarks.peers.against_laplace import compare

        here = conditions_here(arguments, module="benchmarks.peers").with_versions(*PACKAGES)
        begun = {**here.measured, "hardware": f"{here.hardware}, {here.measured['threads']} thread used"}
        results = {"laplace": {"measured": begun, **compare()}}
        path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    tables = page_tables(json.loads(path.read_text(encoding="utf-8")))
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), "peers", tables), encoding="utf-8")


def page_tables(results: dict[str, Any]) -> dict[str, str]:
    """Return the table of docs/evidence.md, and what was measured when, by name."""
    tiny = results["laplace"]["tiny"]
    identity = "laplace-torch multiplies the GGN with a float32 identity"
    same = [
        ("`kron`, reduce", "`kfac_reduce`", "kfac_reduce, alone", ""),
        ("`full`", "`joint_core`, nothing left out", "joint_core, alone", identity),
    ]
    heading = ["laplace-torch", "laplora", "covariance", "evidence", "what is left"]
    rows = [[theirs, ours, *(f"{tiny[key][of]:.0e}" for of in heading[2:4]), left] for theirs, ours, key, left in same]
    measured = {f"measured_{name}": _MEASURED.format_map(part["measured"]) for name, part in results.items()}
    return {"tiny": markdown_table(heading, rows), **measured}


if __name__ == "__main__":
    main()
