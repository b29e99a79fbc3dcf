"""The log normaliser of the whole vocabulary, without logits of the whole vocabulary in memory."""

from __future__ import annotations

from typing import Any

import torch

from laplora.models.readout import label_logits, output_head

#: Rows of the output embedding whose logits are in memory at once.
_CHUNK = 8192


def log_partition(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return ``log sum_v exp f_v`` over the vocabulary, nats, (...) for final hidden states (..., hidden).

    It is float32, or float64 for a float64 model. Its gradient with respect to ``hidden`` is exact and is computed
    here, once for any number of backward passes. There is none with respect to the output embedding, which is frozen.
    """
    weight = output_head(model).weight
    wide, size = hidden.to(weight.device, torch.promote_types(torch.float32, hidden.dtype)), weight.shape[0]
    wanted = torch.is_grad_enabled() and wide.requires_grad
    total = torch.full(wide.shape[:-1], -torch.inf, dtype=wide.dtype, device=wide.device)
    slope = torch.zeros_like(wide)
    for start in range(0, size, _CHUNK):
        with torch.set_grad_enabled(wanted):
            states = wide.detach().requires_grad_(wanted)
            part = label_logits(model, states, range(start, min(start + _CHUNK, size))).logsumexp(-1)
        joined = torch.logaddexp(total, part.detach())
        if wanted:  # d/dh log(Z1 + Z2) is the mean of the two gradients, weighted by Z1 and Z2
            (gradient,) = torch.autograd.grad(part.sum(), states)
            slope = slope * (total - joined).exp()[..., None] + gradient * (part.detach() - joined).exp()[..., None]
        total = joined
    if wanted:
        total = total + (slope * (wide - wide.detach())).sum(-1)
    return total.to(hidden.device)
