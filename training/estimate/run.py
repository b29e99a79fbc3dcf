"""The memory and the least time of a run's steps on a device, from the base model's configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks, reverse_pass
from laplora.posterior.sizes import moment_bytes, posterior_bytes
from laplora.posterior.structures import needs_sums
from laplora.posterior.subset import select_blocks
from laplora.prompts.rows import Batch
from laplora.readouts.label_tokens import LabelTokens
from training.config import RunConfig
from training.estimate.cards import Card
from training.estimate.shapes import held_bytes, shape_model
from training.estimate.trace import Work, work_of
from training.workspace.recomputing import recompute_activations
from training.workspace.targets import target_loss

#: Padded tokens of a batch of answers, as a server has them on a GPU unless it is told otherwise.
ANSWER_TOKENS = 2048
#: Bytes of a number of AdamW's two moments, float32.
_MOMENTS = 2 * 4


@dataclass(frozen=True)
class StepCost:
    """One batch of a step.

    Attributes:
        rows: of the batch.
        beside_bytes: what is held on the device beside the model and the batch's tensors.
    """

    rows: int
    work: Work
    beside_bytes: int = 0

    @property
    def bytes(self) -> int:
        """The most that is held at a time beside the model."""
        return self.beside_bytes + self.work.peak_bytes


@dataclass(frozen=True)
class RunEstimate:
    """What a run takes on its device. Bytes are of tensors: a CUDA context and an allocator's gaps come on top.

    Attributes:
        model_bytes: base and adapter; adapter_parameters: numbers that are trained.
        training: one batch of a step of the optimizer, whose moments are beside it; batches_a_step: how many there are.
        fit: one batch of a pass over the training rows; its sums are on the CPU (``cpu_bytes``).
        answer: one batch of Laplace answers of two thousand tokens or of one row, the posterior beside it.
        posterior_bytes: of the posterior's file, None where its size is no formula (structures ``joint``, ``exact``).
    """

    model_bytes: int
    adapter_parameters: int
    training: StepCost
    fit: StepCost
    answer: StepCost
    posterior_bytes: int | None
    cpu_bytes: int
    batches_a_step: int = 1

    @property
    def steps(self) -> dict[str, StepCost]:
        """The three steps by name."""
        return {"training": self.training, "fit": self.fit, "answer": self.answer}

    @property
    def peak_bytes(self) -> int:
        """The most that any step holds, the model included."""
        return self.model_bytes + max(step.bytes for step in self.steps.values())

    def seconds(self, card: Card, *, steps: int, training_rows: int, answered_rows: int) -> dict[str, float]:
        """Return the least seconds of each step on a card: of training, two passes of a fit, and answers to rows."""
        counts = {
            "training": steps * self.batches_a_step,
            "fit": 2 * -(-training_rows // self.fit.rows),
            "answer": -(-answered_rows // self.answer.rows),
        }
        return {name: counts[name] * step.work.seconds(card) for name, step in self.steps.items()}


def estimate(config: RunConfig, settings: Any, *, tokens: int, classes: int, expanded: bool = False) -> RunEstimate:
    """Return what a run takes.

    Label sequences are counted as one token a label; each further one costs a copy of its tokens.

    Args:
        config: of the run; its base is not looked at, but for the number formats and the layers to remove.
        settings: transformers' configuration of the base.
        tokens: of every row; the longest prompt for memory, the mean one for time.
        classes: labels of a row.
        expanded: 4-bit weights are expanded at load, as on a CPU with the memory for it.

    Raises:
        ModelError: a target that the base does not have, or ``nf4`` without bitsandbytes.
        ConfigError: a subset of the posterior without a block.
    """
    adapter, laplace, base = config.adapter, config.laplace, config.base
    model = shape_model(
        settings,
        quantization="none" if expanded else base.quantization,
        dtype=getattr(torch, base.dtype),
        rank=adapter.rank,
        targets=adapter.targets,
        dropout=adapter.dropout,
        pruned=base.prune_layers,
    )
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = config.optimizer.batch_size
    if config.optimizer.gradient_checkpointing:  # of a model in training mode alone
        recompute_activations(model)
    training = StepCost(rows, work_of(lambda: _train(model, _batch(rows, tokens, classes))), _MOMENTS * parameters)
    model.requires_grad_(False)
    model.eval()
    blocks = select_blocks(find_blocks(model, classes), laplace.subset)
    work_of(
        lambda: reverse_pass(model, LabelTokens(tuple(range(classes))))
    )  # at a model's first Jacobians two ways to compute them are compared
    size = (
        posterior_bytes(blocks, laplace.structure, rank=laplace.rank, joint_rank=laplace.joint_rank)
        if laplace.structure not in ("joint", "exact")
        else None
    )
    sums = needs_sums(laplace.structure)
    fit = _jacobians(model, blocks, laplace.batch_size, tokens, classes, sums=sums)
    answer = _jacobians(model, blocks, max(1, ANSWER_TOKENS // tokens), tokens, classes, sums=False)
    return RunEstimate(
        model_bytes=held_bytes(model),
        adapter_parameters=parameters,
        training=training,
        fit=StepCost(laplace.batch_size, fit),
        answer=StepCost(max(1, ANSWER_TOKENS // tokens), answer, 2 * (size or 0)),  # float32 on the device
        posterior_bytes=size,
        cpu_bytes=2 * moment_bytes(blocks, laplace.rank, laplace.oversampling),
        batches_a_step=config.optimizer.gradient_accumulation,
    )


def _train(model: nn.Module, batch: Batch) -> None:
    """Run one forward and backward pass of training, gradients included."""
    model.train()
    logits = LabelTokens(tuple(range(batch.class_mask.shape[1]))).scores(model, batch).logits
    labels = torch.zeros(len(batch), dtype=torch.int64, device="meta")
    # Not its own backward, which is a function of torch: within one, attention would be as the meta device has it.
    torch.autograd.backward(target_loss(logits, labels, batch.class_mask))


def _jacobians(model: nn.Module, blocks: Sequence[Block], rows: int, tokens: int, classes: int, *, sums: bool) -> Work:
    """Return the work of a batch's Jacobians; of an answer, whose label mass needs every logit, where no sums are."""
    readout, batch = LabelTokens(tuple(range(classes))), _batch(rows, tokens, classes)

    def run() -> object:
        found = contrast_jacobians(model, batch, readout, blocks, sums=sums)
        return found, readout.label_mass(model, found.hidden, batch.class_mask)

    return work_of(run)


def _batch(rows: int, tokens: int, classes: int) -> Batch:
    ids = torch.zeros(rows, tokens, dtype=torch.int64, device="meta")
    return Batch(ids, ids, ids, torch.ones(rows, classes, dtype=torch.bool, device="meta"))
