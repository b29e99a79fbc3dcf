"""``python -m benchmarks.scaling``: one process, two, and one and two replicas on Ray; the table of docs/ray.md.

``--tables`` measures nothing and writes the page from results.json. ``--quick`` takes a minute, prints what it finds
and publishes nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.provenance import ROOT
from benchmarks.harness.record import conditions_here
from benchmarks.scaling.replicas import engines_table, measure
from laplora.files.atomic import write_whole
from training.report.markdown import fill

RESULTS, PAGE = Path(__file__).with_name("results.json"), ROOT / "docs" / "ray.md"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--tables", action="store_true", help="measure nothing: write the page from results.json")
    parser.add_argument("--quick", action="store_true", help="a minute; nothing is published")
    options = parser.parse_args(arguments)
    if not options.tables:
        conditions = conditions_here(arguments, module="benchmarks.scaling").with_versions("ray", "uvicorn", "fastapi")
        turns = measure(seconds=4.0 if options.quick else 30.0, turns=1 if options.quick else 4)
        found = {"turns": turns, "measured": {"hardware": conditions.hardware, **conditions.measured}}
        if options.quick:
            print(json.dumps(found, indent=1))
            return
        write_whole(RESULTS, json.dumps(found, indent=1) + "\n")
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_whole(PAGE, render(PAGE.read_text(encoding="utf-8"), content))


def render(page: str, content: Mapping[str, Any]) -> str:
    """Return the page with its table made anew."""
    where = "{hardware}, {date}, commit {commit}, {artifact}; {versions}".format(**content["measured"])
    return fill(page, "scaling", {"measured": where, "engines": engines_table(content["turns"])})


if __name__ == "__main__":
    main()
