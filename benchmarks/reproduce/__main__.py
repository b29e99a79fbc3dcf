"""Fine-tune models on tasks, keep every checkpoint, fit and measure Laplace at each, and write one page.

    python -m benchmarks.reproduce --models smollm2-135m --tasks sst2

Existing results are not made again: the same command continues in the model, task and checkpoint where it was.
"""

from __future__ import annotations

import argparse
import gc
import sys
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.reproduce.checkpoint import LAST_CHECKPOINTS, answer_base, answer_checkpoint
from benchmarks.reproduce.page import publish, write_page
from benchmarks.reproduce.record import RECORD, begun, scores, write_record
from benchmarks.reproduce.subjects import MODELS, TASKS, check_reproducible, checkpoints, run_config
from laplora.errors import LaploraError
from training.config.run import add_overrides
from training.finetune import train_adapter
from training.workspace.results import load_trained, trained_as
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.terminal import say


def parser() -> argparse.ArgumentParser:
    job = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Models: {', '.join(MODELS)}. Tasks: {', '.join(TASKS)}.",
    )
    job.add_argument("--models", nargs="+", choices=MODELS, default=[], help="which models", metavar="MODEL")
    job.add_argument("--tasks", nargs="+", choices=TASKS, default=["winogrande_s"], help="which tasks", metavar="TASK")
    job.add_argument("--seeds", nargs="+", type=int, default=[0], help="one training each (default: 0)")
    job.add_argument("--steps", type=int, help="optimizer steps (default: as the model's file in training/configs)")
    job.add_argument("--every", type=int, help="steps between checkpoints, each of which is measured")
    job.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="folder of all results")
    job.add_argument("--publish", action="store_true", help="run nothing: write docs/reproduction.md from --out")
    add_overrides(job, " of every run", "data.test=500")
    return job


def main(arguments: list[str] | None = None) -> int:
    """Train and measure every model on every task with every seed, the page written after each; return the status."""
    options = parser().parse_args(arguments)
    if not options.models and not options.publish:
        parser().error(f"--models takes one or more of: {', '.join(MODELS)}")
    try:
        if options.publish:
            say(f"page: {publish(options.out)}")
            return 0
        units = [(m, t, s) for m in options.models for t in options.tasks for s in options.seeds]
        for number, (model, task, seed) in enumerate(units, 1):
            say(f"[{number}/{len(units)}] {model} on {task}, seed {seed}")
            config = run_config(model, task, seed, options.out, options.steps, options.every, options.overrides)
            check_reproducible(config, task)
            reproduce(open_run(config), model)
            gc.collect()  # a model's modules refer to each other; the next one needs the memory
            say(f"page: {write_page(options.out)}")
    except LaploraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def reproduce(run: Run, model: str) -> None:
    """Train one adapter, measure its checkpoints in turn, and write the record after each."""
    steps = checkpoints(run.config)
    if not trained_as(run):  # a record that lies there is of other rows or another base
        (run.folder / RECORD).unlink(missing_ok=True)
    train_adapter(run, keep=steps)
    record = begun(run, model, steps)

    @cache
    def loaded() -> Any:
        return load_trained(run)

    record["checkpoints"]["0"] = scores(answer_base(run, loaded))
    for step in steps:
        others = steps[-LAST_CHECKPOINTS:-1] if step == steps[-1] else ()
        record["checkpoints"][str(step)] = scores(answer_checkpoint(run, loaded, step, others))
        record["whole"] = step == steps[-1]
        write_record(run.folder, record)


if __name__ == "__main__":
    sys.exit(main())
