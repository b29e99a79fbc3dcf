"""The study's job: every task and seed from fine-tuning to predictions, resumable, by one process or several."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from benchmarks.harness.provenance import processor
from benchmarks.study.compute.choose import REVIEW_SCORE, choose
from benchmarks.study.compute.methods import compute
from benchmarks.study.config import StudyConfig
from benchmarks.study.gather import gather, gathered_under
from benchmarks.study.store import read_configuration, read_stores
from benchmarks.study.subjects import write_subjects
from laplora.files import write_json, write_tensors
from laplora.fitting.describing import installed_versions
from training.workspace.terminal import say


def run_study(config: StudyConfig, *, keep_jacobians: bool = False) -> None:
    """Work on every task and seed that is not finished and that no other process works on.

    Start the same command twice to use two processes; stop it at any time, the same command continues.
    """
    subjects = config.runs / config.name / "subjects.jsonl"
    if any(task.data.path == subjects for task in config.tasks.values()):
        write_subjects(subjects)
    todo = [(t, s) for s in config.seeds for t in config.tasks if not finished(config, t, s)]
    total = len(config.seeds) * len(config.tasks)
    started, worked = time.monotonic(), 0
    for number, (task, seed) in enumerate(todo):
        folder = config.folder(task, seed)
        folder.mkdir(parents=True, exist_ok=True)
        with claim(folder) as mine:
            if not mine or finished(config, task, seed):
                continue
            say(f"== {task}, seed {seed} ({total - len(todo) + number + 1} of {total})")
            gather(config, task, seed)
            predict(config, task, seed)
            if not keep_jacobians:
                for path in folder.glob("*.jacobians.safetensors"):
                    path.unlink()
        worked += 1
        left = (time.monotonic() - started) / worked * (len(todo) - number - 1)
        say(f"== {len(todo) - number - 1} left, about {left / 60:.0f} minutes for one process")


def finished(config: StudyConfig, task: str, seed: int) -> bool:
    """Return whether a task and seed has its predictions, made under this configuration, and every average in it."""
    folder = config.folder(task, seed)
    if not all((folder / name).is_file() for name in ("result.json", "predictions.safetensors", "losses.safetensors")):
        return False
    return bool(read_configuration(folder) == gathered_under(config.run_config(task, seed)))


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Give whether this process holds a task and seed; the hold ends with the block, or with the process."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def predict(config: StudyConfig, task: str, seed: int) -> None:
    """Compute every alternative of a gathered task and seed, and write its predictions and result."""
    folder = config.folder(task, seed)
    stores = read_stores(folder)
    methods = compute(config, stores, seed, say)
    choice = choose(methods, stores)
    tensors = {"labels": stores.test.labels, "class_mask": stores.test.class_mask}
    tensors |= {f"probs.{name}": method.outcome.test.probs for name, method in methods.items()}
    tensors |= {f"score.{name}": score for name, score in choice.scores.items()}
    write_tensors(folder / "predictions.safetensors", tensors)
    # The calibration split's losses behind the recommendation: another rule can be tried on them without the model.
    write_tensors(folder / "losses.safetensors", {n: m.outcome.calibration_losses for n, m in methods.items()})
    write_json(
        folder / "result.json",
        {
            "task": task,
            "seed": seed,
            "rows": len(stores.test.labels),
            "train_rows": len(stores.train.labels),
            "calibration_rows": len(stores.calibration.labels),
            "steps": stores.gathered["steps"],
            "classes": stores.gathered["labels"],
            "capped": {
                "available": stores.gathered["splits"]["available"],
                "max_prompt_characters": config.tasks[task].data.max_prompt_characters,
            },
            "recommended": choice.recommendation.predictive,
            "recommendation_reason": choice.recommendation.reason,
            "review_score": REVIEW_SCORE,
            "rankings": choice.rankings,
            "methods": {
                name: {"title": m.title, "family": m.family, "seconds": round(m.seconds, 2), "bytes": m.size_bytes}
                for name, m in methods.items()
            },
            "conformal": choice.conformal,
            "versions": installed_versions(),
            "hardware": {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "configuration": config.run_config(task, 0).model_dump(
                mode="json", include={"base", "adapter", "optimizer", "max_tokens"}
            ),
        },
    )
