"""Fine-tune: LoRA on a frozen base, the loss on the label tokens only.

transformers' Trainer does the loop, the schedule, the logging, the checkpoints and the resume.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import TrainerState, set_seed

from laplora.errors import NonFiniteError
from laplora.files.atomic import write_json
from laplora.models.adapters import save_adapter
from laplora.prompts.rows import collate
from training.config import RunConfig, config_hash_fields
from training.fine_tuning.label_trainer import LabelTrainer, callbacks_of, training_arguments
from training.fine_tuning.new_adapter import add_adapter
from training.fine_tuning.one_device import on_device
from training.workspace.folders import set_aside
from training.workspace.folds import fold_runs
from training.workspace.provenance import adapter_inputs
from training.workspace.results import trained_as
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.selection import SELECTED, Selected, write_selected
from training.workspace.targets import Target, labelled_targets
from training.workspace.terminal import say


def finetune(config: RunConfig) -> Path:
    """Train the adapter of a run and return its folder; resumes at the last checkpoint.

    Also writes ``initial_adapter``, the random start that the prior is centred at, and ``folds``, a folder like the
    run's for each adapter that calibrates.

    Raises:
        NonFiniteError: a trained weight that is NaN or infinite.
    """
    return finetune_run(open_run(config.fine_tuned))


def finetune_run(run: Run) -> Path:
    """Train the adapter of an open run, and those of its folds; as ``finetune``."""
    target, folds = train_adapter(run), fold_runs(run)
    for number, fold in enumerate(folds, 1):
        say(f"adapter without fold {number} of {len(folds)}")
        train_adapter(fold)
    return target


def train_adapter(run: Run) -> Path:
    """Train a run's adapter in its folder and return the adapter's; as ``finetune``, without the folds."""
    config, workers = run.config, run.workers
    target, checkpoints = run.folder / "adapter", run.folder / "checkpoints"
    if workers.broadcast(lambda: target.is_dir() and trained_as(run)):
        say(f"adapter already trained: {target}")
        return target
    last = workers.broadcast(lambda: resumable_checkpoint(run, checkpoints))
    targets = labelled_targets(run, run.splits.train)
    cut = sum(row.truncated for row, _ in targets)
    say(
        f"fine-tuning on {len(targets)} rows, {config.optimizer.step_count} steps of {config.optimizer.step_rows}"
        + (f"; {cut} prompts cut at {config.max_tokens} tokens" if cut else "")
    )
    set_seed(config.seed)
    model = run.adapted(lambda base: add_adapter(base, config))
    if workers.first:
        save_adapter(model, run.folder / "initial_adapter")
        write_json(run.folder / "config.json", config_hash_fields(config) | {"made_from": adapter_inputs(run)})
    with on_device(run.device):
        trainer = LabelTrainer(
            model=model,
            args=training_arguments(config, run.device, checkpoints),
            train_dataset=targets,
            eval_dataset=labelled_targets(run, run.splits.selection) or None,
            data_collator=partial(_collated, run),
            callbacks=callbacks_of(config.optimizer),
        )
        trainer.readout, trainer.optimizer_settings, trainer.workers = run.readout, config.optimizer, workers
        if last:
            say(f"resuming at {last}")
        if not workers.first:
            set_seed(config.seed + workers.rank)  # masks of dropout are drawn anew for other rows
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if not all(bool(weight.isfinite().all()) for weight in model.parameters() if weight.requires_grad):
        raise NonFiniteError("training ended with NaN or infinite weights: lower optimizer.learning_rate")
    if workers.first:
        write_json(run.folder / "training_log.json", trainer.state.log_history)
        if config.optimizer.evaluate_every is not None:
            _tell_selected(run, trainer.state)
        unfinished = run.folder / ".adapter"
        save_adapter(model, unfinished, getattr(torch, config.adapter.save_dtype))
        shutil.rmtree(target, ignore_errors=True)
        unfinished.replace(target)
    workers.wait()
    return target


def resumable_checkpoint(run: Run, checkpoints: Path) -> Path | None:
    """Return the checkpoint to continue at, None to begin; what cannot be continued is put away.

    Results of other rows or another base must not be taken for this run's.
    """
    if not trained_as(run):
        made = ("checkpoints", "initial_adapter", "adapter", SELECTED, "laplace", "report")
        aside = set_aside(run.folder, made)
        if aside:
            say(f"the rows, the base or its weights are not those of the earlier results, which are kept in {aside}")
    return last_checkpoint(checkpoints)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint that was written to its end: the Trainer's state is its last file."""
    whole = [p.parent for p in folder.glob("checkpoint-*/trainer_state.json") if _is_json(p)]
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def _tell_selected(run: Run, state: TrainerState) -> None:
    """Print and write which step's adapter was kept."""
    best, nll = state.best_global_step, state.best_metric
    assert best is not None
    assert nll is not None
    selected = Selected(best, nll, len(run.splits.selection), state.global_step)
    write_selected(run.folder, selected)
    say(str(selected))


def _collated(run: Run, items: Sequence[Target]) -> dict[str, torch.Tensor]:
    rows, targets = zip(*items, strict=True)
    batch = collate(rows, class_count=run.class_count, pad_token_id=run.tokenizer.pad_token_id)
    return {**vars(batch), "labels": torch.stack(targets)}
