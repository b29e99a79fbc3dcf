"""``python -m benchmarks.study``: every alternative on many tasks and seeds, and the pages made of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from laplora.errors import LaploraError
from laplora.models.quiet import quiet_loading


def main(arguments: list[str] | None = None) -> int:
    """Run or publish the study and return the exit status: 0 done, 1 refused with a reason, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description="Compare every alternative on many tasks and seeds (resumes; several processes share the work).",
    )
    parser.add_argument(
        "--config", type=Path, default=Path("benchmarks/study/configs/smollm2.yaml"), help="YAML file of the study"
    )
    parser.add_argument("--keep-jacobians", action="store_true", help="keep gigabytes per task and seed for analysis")
    parser.add_argument("--publish", action="store_true", help="only write docs/results from what is finished")
    parser.add_argument(
        "--approximation",
        nargs=2,
        metavar=("TASK", "SEED"),
        help="only compare each structure's variances with the exact ones, from kept Jacobians, and publish that",
    )
    parser.add_argument(
        "--rows", type=int, default=200, help="test rows of --approximation, from the first (default: 200)"
    )
    try:
        run(parser.parse_args(arguments))
    except LaploraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """Run the study, publish what is finished of it, or compare structures on one task and seed."""
    with quiet_loading():
        from benchmarks.study.compute.approximation import compare
        from benchmarks.study.config import load_study
        from benchmarks.study.job import run_study
        from benchmarks.study.publish import publish, publish_variants
    config = load_study(options.config)
    docs = Path("docs")
    if options.publish:
        publish(config.runs / config.name, docs)
    elif options.approximation:
        task, seed = options.approximation
        publish_variants(compare(config, task, seed, options.rows), docs)
    else:
        run_study(config, keep_jacobians=options.keep_jacobians)


if __name__ == "__main__":
    sys.exit(main())
