"""``python -m training JOB --config FILE``: the offline jobs.

``fit`` takes an adapter that was trained elsewhere too.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from laplora.errors import LaploraError, warnings_said
from training.config import adapter_fit, load_config
from training.workspace.launcher import alone, launched, launched_rank
from training.workspace.terminal import say

JOBS = {
    "run": "fit heads on the base as it is, to serve at once; with fine_tune: true then fine-tune, fit, evaluate and "
    "package; a stopped run continues",
    "finetune": "train the LoRA adapter (resumes at the last checkpoint)",
    "fit": "fit the Laplace posterior and choose the prior precision (resumes); also of an adapter trained elsewhere",
    "evaluate": "measure zero-shot and every predictive of the run on the test split",
    "package": "write the artifact that the server loads",
}
#: Said of the jobs that take a configuration.
_READY = f"Ready configurations to start from are in {Path(__file__).parent / 'configs'}."


def parser(called: str | None = None) -> argparse.ArgumentParser:
    """Return the command line of the jobs; ``called`` is what a job's usage calls it by, in place of this module."""
    top = argparse.ArgumentParser(
        prog="python -m training",
        description="Offline jobs: from a labelled file to a calibrated artifact.",
        epilog=f"{_READY} docs/training.md explains every field.",
    )
    jobs = top.add_subparsers(dest="job", required=True, metavar="JOB")
    for name, summary in JOBS.items():
        job = jobs.add_parser(name, prog=called, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        job.epilog = _READY
        job.add_argument("--config", metavar="FILE", required=name != "fit", type=Path, help="YAML file of the run")
        job.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            dest="overrides",
            help="override one field, for example optimizer.steps=100; may be repeated",
        )
    jobs.choices["run"].add_argument(
        "--check",
        action="store_true",
        help="only load rows and model, say what the run would do and take, and write nothing",
    )
    adapter_fit.add_options(jobs.choices["fit"])
    return top


@warnings_said(say)
def main(arguments: list[str] | None = None, called: str | None = None) -> int:
    """Run one job and return the exit status: 0 done, 1 refused with a reason, 130 interrupted.

    Args:
        called: what the user typed for the job, where that was another command.
    """
    options = parser(called).parse_args(arguments)
    name = "check" if getattr(options, "check", False) else options.job
    try:
        if name == "check":
            alone(name)
        request = adapter_fit.request_of(options) if name == "fit" else None
        if request is not None:
            alone("fit --adapter")
            job("fit_adapter")(request)
        else:
            job(name)(load_config(options.config, options.overrides))
    except LaploraError as error:
        where = f" in process {launched_rank()}" if launched_rank() else ""
        print(f"error{where}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)  # noqa: T201
        return 130
    finally:
        if launched() > 1:
            _leave()
    return 0


def _leave() -> None:
    from training.workspace.processes import leave

    leave()


def job(name: str) -> Callable[[Any], object]:
    """Return the function of a job; its imports are paid for by that job only."""
    from laplora.models.quiet import quiet_loading

    name = "fit_laplace" if name == "fit" else name
    with quiet_loading():
        run: Callable[[Any], object] = getattr(importlib.import_module(f"training.{name}"), name)
    return run


if __name__ == "__main__":
    sys.exit(main())
