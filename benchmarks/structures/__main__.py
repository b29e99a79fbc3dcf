"""``python -m benchmarks.structures``: each structure's variances beside the exact posterior's, and the page of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from laplora.errors import LaploraError
from laplora.models.quiet import quiet_loading


def main(arguments: list[str] | None = None) -> int:
    """Compare the structures on the runs asked for; return 0, or 1 where one was refused with a reason."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structures", description=__doc__)
    parser.add_argument(
        "runs", nargs="*", type=Path, help="YAML files of training runs (benchmarks/structures/configs)"
    )
    parser.add_argument(
        "--rows", type=int, default=100, help="test and calibration rows, from the first (default: 100)"
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of results.md (default: docs)")
    options = parser.parse_args(arguments)
    with quiet_loading():
        from benchmarks.structures.compare import compare
        from benchmarks.structures.gather import gather
        from benchmarks.structures.publish import publish
        from training.config import load_config
    try:
        if not options.runs:
            publish([], options.docs)  # the page anew, from what is published
        for file in options.runs:
            config = load_config(file)
            publish(compare(gather(config, options.rows), config.name, config.seed), options.docs)
    except LaploraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
