"""One step of each kind, timed: what a run will take on this machine."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks
from laplora.posterior.structures import needs_sums
from laplora.prompts.rows import EncodedRow
from training.fine_tuning.new_adapter import recompute_activations
from training.workspace.run import Run
from training.workspace.targets import Target, target_loss

#: Passes over the training rows of the structures that take more than one.
_PASSES = {"joint_core": 2, "ekfac": 2}


@dataclass(frozen=True)
class Trial:
    """The measurements, and the estimate for a run. Times are of batches of rows of middle length.

    Attributes:
        step_s: of one optimizer step; training_s: of all, those of the folds included.
        jacobians_s: of one batch of ``laplace.batch_size`` rows; fit_s, evaluate_s: of those jobs.
        peak_bytes: the most memory held, with batches of the longest rows: of the process, on CUDA of the device.
    """

    step_s: float
    training_s: float
    jacobians_s: float
    fit_s: float
    evaluate_s: float
    peak_bytes: int


def tried(run: Run, model: Any, targets: Sequence[Target]) -> Trial:
    """Run single steps on a run's model, which is trained by them, and return what they took.

    Args:
        model: the run's, with a fresh adapter; targets: the training rows with their labels.
    """
    config, splits = run.config, run.splits
    optimizer, size = config.optimizer, config.laplace.batch_size
    ordered = sorted(targets, key=lambda one: len(one[0].token_ids))
    parameters = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=optimizer.peak_rate)
    if optimizer.gradient_checkpointing:
        recompute_activations(model)

    def step(rows: Sequence[Target]) -> None:
        model.train()
        for start in range(0, len(rows), optimizer.batch_size):
            part = rows[start : start + optimizer.batch_size]
            batch = run.collate([row for row, _ in part])
            labels = torch.stack([label for _, label in part]).to(run.device)
            loss = target_loss(run.readout.scores(model, batch).logits, labels, batch.class_mask)
            loss.backward()  # type: ignore[no-untyped-call]
        adamw.step()
        adamw.zero_grad()

    rows = [row for row, _ in ordered]
    step(ordered[-optimizer.step_rows :])
    step_s = _timed(run, lambda: step(_middle(ordered, optimizer.step_rows)))
    model.eval()
    model.requires_grad_(False)
    blocks, sums = covered_blocks(model, run.readout), needs_sums(config.laplace.structure)

    def jacobians(rows: Sequence[EncodedRow]) -> None:
        contrast_jacobians(model, run.collate(rows), run.readout, blocks, sums=sums)

    jacobians(rows[-size:])
    jacobians_s = _timed(run, lambda: jacobians(_middle(rows, size)))
    trainings = config.calibration.folds if config.calibration.cross_fits else 1  # K of (K - 1) / K, and the served one
    passes = _PASSES.get(config.laplace.structure, 1)
    answered = len(splits.calibration) or len(splits.train)
    fitted = trainings * passes * len(splits.train) + answered
    return Trial(
        step_s=step_s,
        training_s=trainings * optimizer.step_count * step_s,
        jacobians_s=jacobians_s,
        fit_s=fitted / size * jacobians_s,
        evaluate_s=len(splits.test) / size * jacobians_s,
        peak_bytes=_peak_bytes(run.device),
    )


def _middle(ordered: Sequence[Any], count: int) -> Sequence[Any]:
    start = max(0, (len(ordered) - count) // 2)
    return ordered[start : start + count]


def _timed(run: Run, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    return time.perf_counter() - started


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
