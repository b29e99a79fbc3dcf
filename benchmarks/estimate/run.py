"""The memory of a run's steps on a device, from the base model's configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.estimate.shapes import held_bytes, shape_model
from benchmarks.estimate.sizes import moment_bytes, posterior_bytes
from benchmarks.estimate.trace import counted_peak
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks, reverse_pass
from laplora.posterior.structures import needs_sums
from laplora.posterior.subset import select_blocks
from laplora.prompts.rows import Batch
from laplora.readouts.label_tokens import LabelTokens
from training.config import RunConfig
from training.workspace.recomputing import recompute_activations
from training.workspace.targets import target_loss

#: Padded tokens of a batch of answers, as a server has them on a GPU unless it is told otherwise.
ANSWER_TOKENS = 2048
#: Bytes of a number of AdamW's two moments, float32.
_MOMENTS = 2 * 4


@dataclass(frozen=True)
class RunEstimate:
    """The cost of a run on its device. Bytes are of tensors: a CUDA context and an allocator's gaps come on top.

    Attributes:
        model_bytes: base and adapter; adapter_parameters: numbers that are trained.
        training_bytes: the most beside the model of one batch of a step, the optimizer's moments included.
        fit_bytes: of one batch of a pass over the training rows; its sums are on the CPU (``cpu_bytes``).
        answer_bytes: of one batch of Laplace answers of two thousand tokens or of one row, the posterior included.
        posterior_bytes: of the posterior's file.
    """

    model_bytes: int
    adapter_parameters: int
    training_bytes: int
    fit_bytes: int
    answer_bytes: int
    posterior_bytes: int
    cpu_bytes: int


def estimate(config: RunConfig, settings: Any, *, tokens: int, classes: int) -> RunEstimate:
    """Return what a run takes.

    Args:
        config: of the run; of its base the number formats alone are looked at. The structure of the posterior is one
            with a size by formula (``posterior_bytes``).
        settings: transformers' configuration of the base.
        tokens: of every row.
        classes: labels of a row, each one token.
    """
    adapter, laplace, optimizer = config.adapter, config.laplace, config.optimizer
    model = shape_model(
        settings,
        quantization=config.base.quantization,
        dtype=getattr(torch, config.base.dtype),
        rank=adapter.rank,
        targets=adapter.targets,
        dropout=adapter.dropout,
    )
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if optimizer.gradient_checkpointing:  # of a model in training mode alone
        recompute_activations(model)
    step = counted_peak(lambda: _train(model, _batch(optimizer.batch_size, tokens, classes)))
    model.requires_grad_(False)
    model.eval()
    blocks = select_blocks(find_blocks(model, classes), laplace.subset)
    # At a model's first Jacobians two ways to compute them are compared.
    counted_peak(lambda: reverse_pass(model, LabelTokens(tuple(range(classes)))))
    size = posterior_bytes(blocks, laplace.structure, rank=laplace.rank, joint_rank=laplace.joint_rank)
    answered = max(1, ANSWER_TOKENS // tokens)
    fit = _jacobians(model, blocks, laplace.batch_size, tokens, classes, sums=needs_sums(laplace.structure))
    answer = _jacobians(model, blocks, answered, tokens, classes, sums=False)
    return RunEstimate(
        model_bytes=held_bytes(model),
        adapter_parameters=parameters,
        training_bytes=step + _MOMENTS * parameters,
        fit_bytes=fit,
        answer_bytes=answer + 2 * size,  # float32 on the device
        posterior_bytes=size,
        cpu_bytes=2 * moment_bytes(blocks, laplace.rank, laplace.oversampling),
    )


def _train(model: nn.Module, batch: Batch) -> None:
    """Run one forward and backward pass of training, gradients included."""
    model.train()
    logits = LabelTokens(tuple(range(batch.class_mask.shape[1]))).scores(model, batch).logits
    labels = torch.zeros(len(batch), dtype=torch.int64, device="meta")
    # Not its own backward, which is a function of torch: within one, attention would be as the meta device has it.
    torch.autograd.backward(target_loss(logits, labels, batch.class_mask))


def _jacobians(model: nn.Module, blocks: Sequence[Block], rows: int, tokens: int, classes: int, *, sums: bool) -> int:
    """Return the bytes of a batch's Jacobians; of an answer, whose label mass needs every logit, where no sums are."""
    readout, batch = LabelTokens(tuple(range(classes))), _batch(rows, tokens, classes)

    def run() -> object:
        found = contrast_jacobians(model, batch, readout, blocks, sums=sums)
        return found, readout.label_mass(model, found.hidden, batch.class_mask)

    return counted_peak(run)


def _batch(rows: int, tokens: int, classes: int) -> Batch:
    ids = torch.zeros(rows, tokens, dtype=torch.int64, device="meta")
    return Batch(ids, ids, ids, torch.ones(rows, classes, dtype=torch.bool, device="meta"))
