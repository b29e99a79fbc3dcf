"""What the method works on: LoRA matrices as blocks, and a batch's Jacobians with respect to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Block:
    """One LoRA weight matrix, seen as (wide, narrow).

    Attributes:
        name: module path and matrix, for example ``model.layers.0.self_attn.q_proj.lora_A``.
        group: ``lora_A`` (wide side: its input) or ``lora_B`` (wide side: its output).
        wide: size of the side away from the rank; the number of classes for ``lm_head``'s ``lora_B``,
            of which only the label rows matter.
        narrow: the LoRA rank.
    """

    name: str
    group: Literal["lora_A", "lora_B"]
    wide: int
    narrow: int


@dataclass(frozen=True)
class BlockJacobian:
    """Jacobians of one block for a batch, and what the Kronecker factors need of them.

    The sums are None unless they were requested, and the last three unless every token was.

    Attributes:
        jacobian: (batch, classes - 1, wide, narrow), exact, all real tokens.
        mean_input: (batch, in), the linear's input averaged over real tokens.
        summed_gradient: (batch, classes - 1, out), its output gradient summed over real tokens.
        inputs: (batch, tokens, in), the linear's input, 0 at padding; the last token is real.
        gradients: (batch, classes - 1, tokens, out), its output gradient, 0 at padding.
        token_counts: (batch,) int64, real tokens.
    """

    jacobian: torch.Tensor
    mean_input: torch.Tensor | None = None
    summed_gradient: torch.Tensor | None = None
    inputs: torch.Tensor | None = None
    gradients: torch.Tensor | None = None
    token_counts: torch.Tensor | None = None


@dataclass(frozen=True)
class ContrastJacobians:
    """Logits and Jacobians of a batch.

    Attributes:
        logits: (batch, classes).
        hidden: (batch, hidden), the state that the logits were read from.
        blocks: one entry per block, in the blocks' order.
    """

    logits: torch.Tensor
    hidden: torch.Tensor
    blocks: tuple[BlockJacobian, ...]
