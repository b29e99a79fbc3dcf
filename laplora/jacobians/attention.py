"""Gradients of scaled dot product attention for several output gradients at once.

The scores are computed again, so only queries, keys and values are kept from the forward pass:

    ``dV = P^T dO,  dS = P * (dO V^T - rowsum(dO V^T * P)),  dQ = s dS K,  dK = s dS^T Q``

(Dao et al., arXiv 2205.14135, appendix B.2). On a CPU this is written out; other devices use torch's kernel. Scores and
softmax are at least float32; the factors of the other products keep the model's number format, as in torch's kernel.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional as F

#: Bytes of scores that are worked on at a time: they stay in the second-level caches.
_SCORE_BYTES = 1 << 21
#: Queries that are worked on at a time: those before them need not look at the keys that only later ones see.
_QUERIES = 64

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def heads(x: torch.Tensor, size: int) -> torch.Tensor:
    """Return (..., tokens, heads * size) as (..., heads, tokens, size)."""
    return x.view(*x.shape[:-1], -1, size).transpose(-3, -2)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return rotary embeddings applied to (..., heads, tokens, size); with ``-sin`` the transposed map.

    Args:
        cos, sin: (..., tokens, turned), for the first ``turned`` entries of each head; the others stay as they are. In
            a wider format than ``x`` they are applied in that format.
    """
    turned = cos.shape[-1]
    part, half = x[..., :turned], turned // 2
    result = part * cos
    result[..., :half].addcmul_(part[..., half:], sin[..., :half], value=-1)
    result[..., half:].addcmul_(part[..., :half], sin[..., half:])
    result = result.to(x.dtype)
    return result if turned == x.shape[-1] else torch.cat([result, x[..., turned:]], -1)


def attention_gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    gradient: torch.Tensor,
) -> Gradients:
    """Return the gradients of ``softmax(scale Q K^T where mask) V`` with respect to Q, K and V.

    Args:
        query: (batch, heads, queries, size), those of the last ``queries`` tokens.
        key, value: (batch, groups, tokens, size), each shared by ``heads / groups`` query heads.
        mask: (batch or 1, 1, queries, tokens) bool, what a token may attend to: at most itself and those before it,
            for which None stands. A token that may attend to nothing must have no gradient, and then gives none.
        gradient: (contrasts, batch, heads, queries, size), of the output.

    Returns:
        (contrasts, batch, heads, queries, size) and twice (contrasts, batch, groups, tokens, size).
    """
    contrasts, batch, heads, count = gradient.shape[:4]
    tokens = key.shape[2]
    if mask is None:
        mask = torch.ones(count, tokens, dtype=torch.bool, device=query.device).tril(tokens - count)[None, None]
    if query.device.type != "cpu":
        return by_torch(query, key, value, mask, scale, gradient)
    dq, dk, dv = torch.empty_like(gradient), *(key.new_zeros(contrasts, *key.shape) for _ in range(2))
    blocks = max(1, round(count / _QUERIES))
    edges = [count * i // blocks for i in range(blocks + 1)]
    step = max(1, _SCORE_BYTES // (4 * heads * -(-count // blocks) * tokens))
    for start in range(0, batch, step):
        rows = slice(start, min(start + step, batch))
        for first, end in pairwise(edges):
            seen = tokens - count + end
            _add_block(
                query[rows, :, first:end],
                key[rows, :, :seen],
                value[rows, :, :seen],
                (mask[rows] if mask.shape[0] > 1 else mask)[:, :, first:end, :seen],
                scale,
                gradient[:, rows, :, first:end],
                (dq[:, rows, :, first:end], dk[:, rows, :, :seen], dv[:, rows, :, :seen]),
            )
    return dq, dk, dv


def by_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    gradient: torch.Tensor,
) -> Gradients:
    """Return the same as ``attention_gradients`` from torch's attention, run again; one backward pass a contrast."""
    repeats = query.shape[1] // key.shape[1]
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (query, key, value)]
        k, v = (t.repeat_interleave(repeats, 1) if repeats > 1 else t for t in leaves[1:])
        output = F.scaled_dot_product_attention(leaves[0], k, v, attn_mask=mask, scale=scale)
        by_contrast = [torch.autograd.grad(output, leaves, one, retain_graph=True) for one in gradient]
    to_query, to_key, to_value = (torch.stack(parts) for parts in zip(*by_contrast, strict=True))
    return to_query, to_key, to_value


def _add_block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    gradient: torch.Tensor,
    result: Gradients,
) -> None:
    """Write the gradients of some rows' queries, and add those of the keys and values that these see."""
    rows, heads, count, size = query.shape
    groups, tokens = key.shape[1:3]
    wide = torch.promote_types(torch.float32, query.dtype)
    # The query heads of a group are further queries to the same keys, so keys and values are never repeated.
    queries = heads // groups * count
    q = query.reshape(rows * groups, queries, size)
    k, v = (t.reshape(rows * groups, tokens, size) for t in (key, value))
    scores = torch.bmm(q.to(wide), k.to(wide).mT).mul_(scale).view(rows, heads, count, tokens)
    probs = scores.masked_fill_(~mask, torch.finfo(wide).min).softmax(-1).view(rows * groups, queries, tokens)
    transposed = probs.to(query.dtype).mT
    for one, dq, dk, dv in zip(gradient, *result, strict=True):
        upper = one.reshape(rows * groups, queries, size)
        weighted = torch.bmm(upper, v.mT).to(wide).mul_(probs)
        along = weighted.sum(-1, keepdim=True)
        outer = weighted.addcmul_(probs, along, value=-1).mul_(scale).to(query.dtype)
        dq.copy_(torch.bmm(outer, k).view(query.shape))
        dk.add_(torch.bmm(outer.mT, q).view(key.shape))
        dv.add_(torch.bmm(transposed, upper).view(value.shape))
