"""Gather: one fine-tuning and one pass with Jacobians; the only part of the comparison that runs the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.structures.curvature.kfac import every_token
from benchmarks.structures.rows import Gathered, SplitRows, offsets
from laplora.jacobians.blocks import Block, BlockJacobian
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks
from laplora.linearised import contrast_hessian
from laplora.models.adapters import attach_adapter
from laplora.prompts.examples import Example
from laplora.prompts.rows import EncodedRow
from laplora.readouts.label_tokens import LabelTokens
from training.config import RunConfig
from training.finetune import finetune
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.terminal import progress

#: Rows of a batch.
_BATCH = 16


def gather(config: RunConfig, most: int) -> Gathered:
    """Return the rows of a run's fine-tuned model; of calibration and test rows at most so many, from the first."""
    finetune(config)
    run = open_run(config)
    model = attach_adapter(run.load_base(), config.run_dir / "adapter")
    blocks = covered_blocks(model, run.readout)
    splits = run.splits
    return Gathered(
        blocks,
        split_rows(run, model, blocks, splits.train, "train"),
        split_rows(run, model, blocks, splits.calibration[:most], "calibration"),
        split_rows(run, model, blocks, splits.test[:most], "test"),
    )


def split_rows(run: Run, model: Any, blocks: tuple[Block, ...], examples: Sequence[Example], title: str) -> SplitRows:
    """Return examples' Jacobians and logits and, of the split ``train``, their Kronecker inputs."""
    assert isinstance(run.readout, LabelTokens)
    rows = run.encode(examples)
    count, classes, training = len(rows), run.class_count, title == "train"
    jacobians = torch.zeros(count, classes - 1, offsets(blocks)[-1][1], dtype=torch.bfloat16)
    by_row: dict[str, torch.Tensor] = {}
    summed: dict[str, torch.Tensor] = {}

    def keep(name: str, index: list[int], values: torch.Tensor) -> None:
        if name not in by_row:
            by_row[name] = torch.zeros(count, *values.shape[1:], dtype=values.dtype)
        by_row[name][index] = values

    def add(name: str, values: torch.Tensor) -> None:
        summed[name] = summed.get(name, 0) + values

    for index in progress(list(by_classes_and_length(rows, _BATCH)), f"{run.config.name} {title}"):
        batch = run.collate([rows[i] for i in index])
        # A row's first k classes are reached by the first k - 1 contrasts alone: fewer backward passes.
        possible = int(batch.class_mask.sum(1).max())
        readout = LabelTokens(run.readout.token_ids[:possible])
        result = contrast_jacobians(model, batch, readout, blocks, tokens=training)
        for i, (first, last) in enumerate(offsets(blocks)):
            jacobians[index, : possible - 1, first:last] = result.blocks[i].jacobian.flatten(2).to(jacobians)
        logits = torch.zeros(len(index), classes)
        logits[:, :possible] = result.logits.float()
        keep("logits", index, logits)
        keep("class_mask", index, batch.class_mask.cpu())
        if training:
            hessian = contrast_hessian(result.logits, batch.class_mask[:, :possible]).float()
            add("expand_tokens", batch.attention_mask.sum().float()[None])
            for i, part in enumerate(result.blocks):
                assert part.mean_input is not None
                assert part.summed_gradient is not None
                inputs, gradients, _ = every_token(part)
                keep(f"mean_input.{i}", index, part.mean_input.float())
                keep(f"summed_gradient.{i}", index, _all_contrasts(part.summed_gradient.float(), classes))
                keep(f"last_input.{i}", index, inputs[:, -1].float())
                keep(f"last_gradient.{i}", index, _all_contrasts(gradients[:, :, -1].float(), classes))
                of_inputs, of_gradients = _token_products(part, hessian)
                add(f"expand_input.{i}", of_inputs)
                add(f"expand_gradient.{i}", of_gradients)
    logits, mask = by_row.pop("logits"), by_row.pop("class_mask")
    labels = torch.tensor([e.label for e in examples])
    return SplitRows(jacobians, logits, mask, labels, by_row | summed)


def _all_contrasts(values: torch.Tensor, classes: int) -> torch.Tensor:
    """Return (batch, classes - 1, out): 0 at the contrasts with classes that these rows cannot have."""
    return torch.nn.functional.pad(values, (0, 0, 0, classes - 1 - values.shape[1]))


def _token_products(part: BlockJacobian, hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one block's sums over rows and tokens of both factors' outer products, (in, in) and (out, out) float32."""
    every_input, every_gradient, _ = every_token(part)
    flat, gradients = every_input.float().flatten(0, 1), every_gradient.float()
    weighted = torch.einsum("ncd,ndto->ncto", hessian, gradients)
    return flat.T @ flat, weighted.flatten(0, 2).T @ gradients.flatten(0, 2)


def by_classes_and_length(rows: Sequence[EncodedRow], size: int) -> Iterator[list[int]]:
    """Yield row numbers in batches of one class count and like length."""
    for count in sorted({row.class_count for row in rows}):
        order = [i for i, row in enumerate(rows) if row.class_count == count]
        order.sort(key=lambda i: len(rows[i].token_ids))
        yield from (order[start : start + size] for start in range(0, len(order), size))
