"""What ``python -m training reproduce`` is told: a command line as one value."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from laplora.errors import ConfigError
from training.config.overrides import add_overrides
from training.config.reproduced import MODELS, TASKS


@dataclass(frozen=True)
class Reproduction:
    """What ``python -m training reproduce`` is told.

    Attributes:
        models: keys of ``MODELS``; tasks: of ``TASKS``; seeds: of the trainings.
        steps: optimizer steps; every: steps between checkpoints, each of which is measured; None: as the model's file.
        out: folder of all results, where a stopped call continues.
        overrides: ``section.key=value`` for every run.
        publish: write the documentation's page from what lies in ``out``, and run nothing.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    every: int | None = None
    out: Path = Path("runs/reproduce")
    overrides: tuple[str, ...] = ()
    publish: bool = False


def add_options(job: argparse.ArgumentParser) -> None:
    """Give a command line the options of the job."""
    job.add_argument("--models", nargs="+", choices=MODELS, default=[], help="which models", metavar="MODEL")
    job.add_argument("--tasks", nargs="+", choices=TASKS, default=["winogrande_s"], help="which tasks", metavar="TASK")
    job.add_argument("--seeds", nargs="+", type=int, default=[0], help="one training each (default: 0)")
    job.add_argument("--steps", type=int, help="optimizer steps (default: as the model's file in training/configs)")
    job.add_argument(
        "--every", type=int, help="steps between checkpoints, each of which is measured (default: as there)"
    )
    out = "folder of all results (default: runs/reproduce); the same command continues there"
    job.add_argument("--out", type=Path, default=Path("runs/reproduce"), help=out)
    job.add_argument(
        "--publish", action="store_true", help="run nothing: write docs/reproduction.md from what --out holds"
    )
    add_overrides(job, " of every run", "data.test=500")
    job.epilog = f"Models: {', '.join(MODELS)}. Tasks: {', '.join(TASKS)}."


def request_of(options: argparse.Namespace) -> Reproduction:
    """Return what the command line asks for; ConfigError where it names no model."""
    if not options.models and not options.publish:
        raise ConfigError(f"--models takes one or more of: {', '.join(MODELS)}")
    return Reproduction(
        models=tuple(options.models),
        tasks=tuple(options.tasks),
        seeds=tuple(options.seeds),
        steps=options.steps,
        every=options.every,
        out=options.out,
        overrides=tuple(options.overrides),
        publish=options.publish,
    )
