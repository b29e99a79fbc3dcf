"""``python -m benchmarks.scaling``: costs, the simulation beside a server, replicas; and docs/scaling.md's tables.

    python -m benchmarks.scaling --only against         # costs, and the simulation beside a real server
    python -m benchmarks.scaling --only engines         # one process, and one and two replicas on Ray
    python -m benchmarks.scaling --tables               # measures nothing: the page from results.json

``--quick`` takes seconds instead of minutes, prints what it finds and publishes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness.record import conditions_here
from benchmarks.scaling import against, page, replicas

MODES = ("map", "laplace")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for, and publish it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("against", "engines"), help="one part alone")
    parser.add_argument("--tables", action="store_true", help="measure nothing: write the page from results.json")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; nothing is published")
    options = parser.parse_args(arguments)
    seconds, turns = (4.0, 1) if options.quick else (30.0, 7)
    parts: dict[str, Callable[[], Any]] = {
        "against": lambda: {mode: against.measure(mode=mode, seconds=seconds, turns=turns) for mode in MODES},
        "engines": lambda: replicas.measure(seconds=seconds, turns=1 if options.quick else 4),
    }
    wanted = [] if options.tables else [options.only] if options.only else list(parts)
    conditions = conditions_here(arguments, module="benchmarks.scaling").with_versions("ray", "uvicorn", "fastapi")
    found = {name: parts[name]() for name in wanted}
    if "against" in found:  # cells are simulated with what was measured
        found["cells"] = page.simulated_cells(found["against"]["laplace"]["host"]["request_s"])
    if options.quick:
        print(json.dumps(found, indent=1))
        return
    if found:
        measured = {"hardware": conditions.hardware, **conditions.measured}
        page.publish({**found, "measured": {**page.committed().get("measured", {}), **dict.fromkeys(found, measured)}})
    else:
        page.publish({})


if __name__ == "__main__":
    main(sys.argv[1:])
