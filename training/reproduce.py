"""Reproduce: fine-tune models on tasks, keep every checkpoint, fit and measure Laplace at each, and write one page."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from laplora.prompts.examples import Example
from training.config import DataConfig
from training.config.reproduced import SHIFTED, check_reproducible, checkpoints, run_config
from training.config.reproduction import Reproduction
from training.finetune import train_adapter
from training.reproduction.checkpoint import LAST_CHECKPOINTS, TEST, answer_base, answer_checkpoint
from training.reproduction.page import publish, write_page
from training.reproduction.record import RECORD, begun, cut_rows, scores, write_record
from training.shift import shifted_set
from training.workspace.results import load_trained, trained_as
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.terminal import say


def reproduce(request: Reproduction) -> Path:
    """Train and measure every model on every task with every seed; return the page, which is written after each.

    Trainings, checkpoints and answers that are there are not made again.

    Raises:
        ConfigError, DataError, ModelError, DownloadError: as ``training.run.run``; the earlier pairs' results stay.
    """
    if request.publish:
        return publish(request.out)
    units = [(m, t, s) for m in request.models for t in request.tasks for s in request.seeds]
    for number, (model, task, seed) in enumerate(units, 1):
        say(f"[{number}/{len(units)}] {model} on {task}, seed {seed}")
        config = run_config(model, task, seed, request.out, request.steps, request.every, request.overrides)
        check_reproducible(config, task)
        _reproduce_one(open_run(config), model)
        gc.collect()  # a model's modules refer to each other; the next one needs the memory
        page = write_page(request.out)
        say(f"page: {page}")
    return page


def _reproduce_one(run: Run, model: str) -> None:
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
    for step in steps[:-1]:
        record["checkpoints"][str(step)] = scores(
            answer_checkpoint(run, loaded, step, (), {TEST: run.splits.test})[TEST]
        )
        write_record(run.folder, record)
    others = steps[-LAST_CHECKPOINTS:-1]
    sets = {TEST: run.splits.test, **_shifted(run, record)}
    answers = answer_checkpoint(run, loaded, steps[-1], others, sets)
    measured = {name: scores(of_set) for name, of_set in answers.items()}
    record["checkpoints"][str(steps[-1])] = measured[TEST]
    for name, shifted in record["shift"].items():
        shifted["methods"] = measured[name]
    record["whole"] = True
    write_record(run.folder, record)


def _shifted(run: Run, record: dict[str, Any]) -> Mapping[str, Sequence[Example]]:
    """Return the rows of the other data sets that a model of OpenBookQA is asked, and note them in the record."""
    config, splits = run.config, run.splits
    if config.data.dataset != "openbookqa":
        return {}
    known = {splits.task.question(e) for part in (splits.train, splits.calibration, splits.test) for e in part}
    sets: dict[str, Sequence[Example]] = {}
    for name, (_, fields) in SHIFTED.items():
        data = DataConfig(**fields, source=config.data.source, split_seed=config.data.split_seed)
        found = shifted_set(name, data, config.seed, config.data.test or len(splits.test), splits.task, known)
        sets[name] = found.examples
        record["shift"][name] = {
            "rows": len(found.examples),
            "left_out": dict(found.left_out),
            "source": found.source,
            "cut": cut_rows(run, found.examples),
        }
    return sets
