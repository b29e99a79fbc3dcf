"""From what a pass noted at one linear, its inputs and output gradients, to its block's Jacobians."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from laplora.jacobians.blocks import Block, BlockJacobian


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
