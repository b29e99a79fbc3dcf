"""The method's inputs: trained matrices as blocks, and a batch's Jacobians with respect to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import pad

from laplora.linearised import Likelihood, contrast_hessian, mean_of


@dataclass(frozen=True)
class Block:
    """One weight matrix that the posterior covers, seen as (wide, narrow).

    Attributes:
        name: module path and matrix, for example ``model.layers.0.self_attn.q_proj.lora_A``.
        group: ``lora_A`` (wide side: its input), ``lora_B`` (wide side: its output), or ``head``, a trained linear of
            the read-out (wide side: its input, with a column for the bias if it has one).
        wide: size of the side away from the rank; the number of classes for ``lm_head``'s ``lora_B``,
            of which only the label rows matter.
        narrow: the LoRA rank; of the head its outputs.
    """

    name: str
    group: Literal["lora_A", "lora_B", "head"]
    wide: int
    narrow: int


@dataclass(frozen=True)
class BlockJacobian:
    """Jacobians of one block for a batch, and what the Kronecker factors need of them.

    The sums are None unless they were requested.

    Attributes:
        jacobian: (batch, classes - 1, wide, narrow), exact, all real tokens.
        mean_input: (batch, in), the linear's input averaged over real tokens.
        summed_gradient: (batch, classes - 1, out), its output gradient summed over real tokens.
    """

    jacobian: torch.Tensor
    mean_input: torch.Tensor | None = None
    summed_gradient: torch.Tensor | None = None


@dataclass(frozen=True)
class ContrastJacobians:
    """Logits and Jacobians of a batch.

    Attributes:
        logits: (batch, classes).
        hidden: (batch, features), the state that the logits were read from.
        blocks: one entry per block, in the blocks' order.
        likelihood: of a label given the logits; its directions are those of the Jacobians.
        weights: (batch, directions, directions) float64, of Jacobians in other directions than the likelihood's: the
            curvature in them (``laplora.linearised``, Lambda). None: the likelihood's, exact.
        directions: (directions, 1 or batch, classes), those of the Jacobians. None: the likelihood's.
    """

    logits: torch.Tensor
    hidden: torch.Tensor
    blocks: tuple[BlockJacobian, ...]
    likelihood: Likelihood = "categorical"
    weights: torch.Tensor | None = None
    directions: torch.Tensor | None = None

    @property
    def mean(self) -> torch.Tensor:
        """``Q^T f``, (batch, directions of the likelihood), nats."""
        return mean_of(self.likelihood, self.logits)

    def curvature(self, class_mask: torch.Tensor) -> torch.Tensor:
        """Return ``Lambda`` of each row in the directions of the Jacobians, (batch, directions, directions) float64."""
        if self.weights is not None:
            return self.weights
        if self.likelihood == "categorical":
            return contrast_hessian(self.logits, class_mask)
        probs = self.logits.double().sigmoid()
        return torch.diag_embed((probs * (1 - probs)).masked_fill(~class_mask, 0))


@dataclass(frozen=True)
class Directions:
    """Directions in the logits whose Jacobians are computed, in place of the likelihood's own.

    Attributes:
        vectors: (directions, 1 or batch, classes).
        weights: (batch, directions, directions) float64, the curvature in them (``ContrastJacobians.weights``).
    """

    vectors: torch.Tensor
    weights: torch.Tensor | None = None


#: Chooses them from a batch's logits (batch, classes) and class mask.
Choose = Callable[[torch.Tensor, torch.Tensor], Directions]


def with_bias(block: Block, inputs: torch.Tensor) -> torch.Tensor:
    """Return a linear's inputs, with a last feature of 1 where a head's block has its bias."""
    has_bias = block.group == "head" and block.wide > inputs.shape[-1]
    return pad(inputs, (0, 1), value=1.0) if has_bias else inputs


def block_jacobian(
    side: str, inputs: torch.Tensor, deltas: torch.Tensor, mask: torch.Tensor, runs: int, *, sums: bool
) -> BlockJacobian:
    """Return a block's Jacobians, from its linear's inputs and output gradients.

    Args:
        inputs: (batch, tokens, in), or (batch, in) where the linear runs once a row, as a head does. If several runs
            score a row, the batch is that of the runs.
        deltas: (directions, batch, last tokens, out), or (directions, batch, out); zero at padding and at every token
            before the last ones.
        mask: (batch, tokens), 1 at real tokens.
        runs: of each row. Its Jacobian is the sum over them, as if their tokens were those of one text.
        sums: whether to return mean inputs and summed gradients too.
    """
    if inputs.dim() == 2:
        inputs, mask, deltas = inputs[:, None], torch.ones_like(mask[:, -1:]), deltas[:, :, None]
    if runs > 1:
        rows = len(mask) // runs
        inputs, mask = inputs.reshape(rows, -1, inputs.shape[-1]), mask.reshape(rows, -1)
        deltas = deltas.reshape(len(deltas), rows, -1, deltas.shape[-1])
    directions, batch, last, out = deltas.shape
    # Pad positions have activations, and no gradient: the product needs no mask.
    inputs, mask = inputs.to(deltas.device), mask.to(deltas.device)  # of a model on several devices: the module's
    recent = inputs[:, -last:].to(deltas.dtype)
    joined = deltas.permute(1, 0, 3, 2).reshape(batch, directions * out, last)
    jacobian = torch.bmm(joined, recent).view(batch, directions, out, -1)
    if side != "lora_B":  # (narrow, wide): the product is faster this way round
        jacobian = jacobian.mT
    if not sums:
        return BlockJacobian(jacobian)
    real = mask[..., None].to(deltas.dtype)
    inputs = inputs.to(deltas.dtype) * real
    return BlockJacobian(jacobian, inputs.sum(1) / real.sum(1), deltas.sum(2).transpose(0, 1))
