"""The slow, obvious truth: laplora's method with dense float64 matrices and one autograd call per number.

Nothing here is shared with the fast path: each example goes through the model alone and without padding, each
Jacobian row is one ``torch.autograd.grad``, each posterior an explicit matrix, each integral a plain Monte-Carlo
average.

Sources: Yang et al. (arXiv 2308.13111); Eschenhagen et al. (2311.00636), KFAC-reduce; George et al. (1806.03884),
EKFAC.

A *block* is one LoRA weight, ``lora_A`` (rank, d_in) or ``lora_B`` (d_out, rank). Its *large side* is d_in or
d_out, its *small side* the rank. Jacobians are oriented (large, small), so ``lora_A``'s are transposed, and
flattened with the small side running fastest. ``lora_B`` of ``lm_head`` has the rows of the label tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laplora.prompts.rows import Batch


@dataclass(frozen=True)
class Key:
    """Which block: the path of the LoRA module and which of its two weights ("A" or "B")."""

    module: str
    side: str


@dataclass(frozen=True)
class Factors:
    """KFAC-reduce factors of one block, dense.

    Attributes:
        large: (large, large); ``small``: (small, small). ``kron(large, small)`` approximates the GGN block:
            of the two, the one over inputs is a mean over examples and the one over gradients a sum.
    """

    large: Tensor
    small: Tensor


@dataclass(frozen=True)
class Basis:
    """Orthonormal columns a block's curvature is written in: ``u`` (large, k) and ``v`` (small, small)."""

    u: Tensor
    v: Tensor


@dataclass(frozen=True)
class Truth:
    """What a model and a training set determine, all float64.

    Attributes:
        logits: (n, classes); ``probs``: (n, classes), 0 at impossible classes.
        jacobians: (n, classes, large, small) by block.
        ggn: (large * small, large * small) by block, summed over examples.
        factors: KFAC-reduce factors by block.
    """

    logits: Tensor
    probs: Tensor
    jacobians: dict[Key, Tensor]
    ggn: dict[Key, Tensor]
    factors: dict[Key, Factors]


@dataclass(frozen=True)
class Problem:
    """A tiny model, a training set on which its factors have full rank, and the dense truth about both."""

    model: Any
    task: Any
    truth: Truth


def truth(model: Any, batch: Batch, label_ids: Sequence[int]) -> Truth:
    """Return everything the reference knows of a model on a batch."""
    logits = map_logits(model, batch, label_ids)
    probs = masked_probs(logits, batch.class_mask)
    found = jacobians(model, batch, label_ids)
    ggn = {key: block_ggn(jacobian, probs) for key, jacobian in found.items()}
    return Truth(logits, probs, found, ggn, kfac_reduce(model, batch, label_ids))


def single_rows(batch: Batch) -> list[Batch]:
    """Return each example of a batch as a batch of its own, its padding cut away."""
    rows = []
    for n in range(len(batch)):
        real = batch.attention_mask[n].bool()
        count = int(real.sum())
        attention, positions = torch.ones((1, count), dtype=torch.int64), torch.arange(count)[None]
        rows.append(Batch(batch.input_ids[n, real][None], attention, positions, batch.class_mask[n : n + 1]))
    return rows


def class_logits(model: Any, batch: Batch, label_ids: Sequence[int]) -> Tensor:
    """Return class logits (batch, classes) from the model's ordinary full forward."""
    out = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
    )
    return out.logits[:, -1, list(label_ids)]


def map_logits(model: Any, batch: Batch, label_ids: Sequence[int]) -> Tensor:
    """Return detached class logits (batch, classes), one unpadded example at a time."""
    with torch.no_grad():
        return torch.cat([class_logits(model, row, label_ids) for row in single_rows(batch)]).double()


def masked_probs(logits: Tensor, class_mask: Tensor) -> Tensor:
    """Return softmax probabilities (..., classes) over the possible classes, exactly 0 at the others."""
    return torch.softmax(logits.masked_fill(~class_mask, -torch.inf), dim=-1)


def block_weights(model: Any) -> dict[Key, torch.nn.Parameter]:
    """Return every LoRA weight of the default adapter by block."""
    found = {}
    for name, weight in model.named_parameters():
        for side in ("A", "B"):
            tail = f".lora_{side}.default.weight"
            if name.endswith(tail):
                found[Key(name.removesuffix(tail), side)] = weight
    return found


def jacobians(model: Any, batch: Batch, label_ids: Sequence[int]) -> dict[Key, Tensor]:
    """Return d logits / d block (batch, classes, large, small): one logit of one example at a time."""
    weights = block_weights(model)
    for weight in weights.values():
        weight.requires_grad_(True)
    out: dict[Key, list[Tensor]] = {key: [] for key in weights}
    for row in single_rows(batch):
        for logit in class_logits(model, row, label_ids)[0]:
            grads = torch.autograd.grad(logit, list(weights.values()), retain_graph=True)
            for key, grad in zip(weights, grads, strict=True):
                out[key].append(_orient(key, grad.double(), label_ids))
    return {key: torch.stack(value).unflatten(0, (-1, len(label_ids))) for key, value in out.items()}


def _orient(key: Key, grad: Tensor, label_ids: Sequence[int]) -> Tensor:
    """Return a gradient as (large, small); of lm_head's lora_B keep the label rows, the others being zero."""
    if key.side == "A":
        return grad.T
    if key.module.endswith("lm_head"):
        others = [i for i in range(grad.shape[0]) if i not in label_ids]
        assert not grad[others].any(), "a class logit depends on another token's row of lm_head"
        return grad[list(label_ids)]
    return grad


def softmax_hessian(probs: Tensor) -> Tensor:
    """Return diag p - p p^T (batch, classes, classes), the Hessian of the negative log-likelihood in the logits."""
    return torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]


def block_ggn(jacobian: Tensor, probs: Tensor) -> Tensor:
    """Return sum_n J_n^T Lambda_n J_n (large * small, large * small) of one block, summed over examples."""
    flat = jacobian.flatten(2)
    return sum(j.T @ h @ j for j, h in zip(flat, softmax_hessian(probs), strict=True))


def joint_ggn(jacobians: Mapping[Key, Tensor], probs: Tensor) -> Tensor:
    """Return the GGN over all blocks (parameters, parameters), in the mapping's order."""
    return block_ggn(torch.cat([j.flatten(2) for j in jacobians.values()], dim=2)[..., None], probs)


def kfac_reduce(model: Any, batch: Batch, label_ids: Sequence[int]) -> dict[Key, Factors]:
    """Return the dense KFAC-reduce factors of every block: all tokens, exact Fisher.

    A = 1/N sum_n xbar xbar^T, xbar the mean input over the example's tokens; S = sum_n sum_cd Lambda_cd g_c g_d^T,
    g_c the gradient of logit c with respect to a zero bias added to the layer's output. lm_head is read at one token
    only: its mean is over that token.
    """
    keys = list(block_weights(model))
    inputs: dict[Key, Tensor] = {}
    gradients: dict[Key, Tensor] = {}
    rows = single_rows(batch)
    for row in rows:
        with zero_biases(model, keys) as (biases, seen):
            logits = class_logits(model, row, label_ids)[0]
            hessian = softmax_hessian(masked_probs(logits.detach(), row.class_mask).double())[0]
            grads = [torch.autograd.grad(z, list(biases.values()), retain_graph=True) for z in logits]
        for i, key in enumerate(biases):
            lm_head = key.module.endswith("lm_head")
            x = seen[key][0, -1].double() if lm_head else seen[key][0].double().mean(0)
            g = torch.stack([per_class[i].double() for per_class in grads])
            if lm_head and key.side == "B":
                g = g[:, list(label_ids)]
            inputs[key] = inputs.get(key, 0) + torch.outer(x, x) / len(rows)
            gradients[key] = gradients.get(key, 0) + g.T @ hessian @ g
    return {
        key: Factors(inputs[key], gradients[key]) if key.side == "A" else Factors(gradients[key], inputs[key])
        for key in keys
    }


@contextmanager
def zero_biases(model: Any, keys: Sequence[Key], tokens: int | None = None):
    """Add a zero bias to the output of every LoRA linear layer; yield the biases and the inputs seen (1, tokens, d).

    Args:
        tokens: one bias for each of so many tokens, (tokens, out); None: one for all, (out,).
    """
    biases: dict[Key, Tensor] = {}
    seen: dict[Key, Tensor] = {}
    handles = []
    for key in keys:
        layer = model.get_submodule(f"{key.module}.lora_{key.side}.default")
        biases[key] = torch.zeros(
            [layer.out_features] if tokens is None else [tokens, layer.out_features],
            dtype=layer.weight.dtype,
            requires_grad=True,
        )

        def add(_module: Any, args: Any, output: Tensor, key: Key = key) -> Tensor:
            seen[key] = args[0].detach()
            return output + biases[key]

        handles.append(layer.register_forward_hook(add))
    try:
        yield biases, seen
    finally:
        for handle in handles:
            handle.remove()


def kron(left: Tensor, right: Tensor) -> Tensor:
    """Return the Kronecker product; torch's own fails on matrices with one column and odd strides (seen in 2.13)."""
    product = left[:, None, :, None] * right[None, :, None, :]
    return product.reshape(left.shape[0] * right.shape[0], left.shape[1] * right.shape[1])


def eigenbasis(factors: Factors, rank: int | None = None) -> Basis:
    """Return the eigenvectors of both factors, largest first, the large side cut to ``rank`` columns."""
    u = torch.linalg.eigh(factors.large).eigenvectors.flip(1)
    v = torch.linalg.eigh(factors.small).eigenvectors.flip(1)
    return Basis(u[:, :rank], v)


def ekfac(ggn: Tensor, basis: Basis) -> tuple[Tensor, Tensor]:
    """Return s (k, small) and the isotropic tail tau (small,) of a dense GGN block in a basis.

    s_aj is the GGN's diagonal entry at u_a (x) v_j; tau_j spreads what is left of the trace along v_j over the
    large - k remaining directions (0 when none remain).
    """
    large, k = basis.u.shape
    small = basis.v.shape[0]
    columns = kron(basis.u, basis.v)
    s = torch.einsum("pi,pq,qi->i", columns, ggn, columns).reshape(k, small)
    along = kron(torch.eye(large, dtype=ggn.dtype), basis.v)
    trace = torch.einsum("pi,pq,qi->i", along, ggn, along).reshape(large, small).sum(0)
    tau = (trace - s.sum(0)) / (large - k) if large > k else torch.zeros_like(trace)
    return s, tau


def block_curvature(basis: Basis, s: Tensor, tau: Tensor) -> Tensor:
    """Return the approximate GGN block as one dense matrix: s in the basis, tau_j along v_j outside of it."""
    columns = kron(basis.u, basis.v)
    outside = torch.eye(basis.u.shape[0], dtype=s.dtype) - basis.u @ basis.u.T
    return columns @ torch.diag(s.flatten()) @ columns.T + kron(outside, basis.v @ torch.diag(tau) @ basis.v.T)


def logit_covariance(
    jacobians: Mapping[Key, Tensor], curvature: Mapping[Key, Tensor], prior_precision: Mapping[Key, float]
) -> Tensor:
    """Return J Sigma J^T (batch, classes, classes), Sigma = (lambda I + curvature)^-1 block by block."""
    terms = []
    for key, jacobian in jacobians.items():
        flat = jacobian.flatten(2)
        precision = curvature[key] + prior_precision[key] * torch.eye(flat.shape[2], dtype=flat.dtype)
        terms.append(flat @ torch.linalg.inv(precision) @ flat.mT)
    return torch.stack(terms).sum(0)


def log_determinant(curvature: Mapping[Key, Tensor], prior_precision: Mapping[Key, float]) -> float:
    """Return log det(I + curvature / lambda) over all blocks: the posterior precision relative to the prior's."""
    return sum(
        float(torch.logdet(torch.eye(c.shape[0], dtype=c.dtype) + c / prior_precision[key]))
        for key, c in curvature.items()
    )


def two_class_probs(logit_mean: Tensor, logit_covariance: Tensor) -> Tensor:
    """Return mean probabilities (batch, 2) under Gaussian logits, by a fine sum over their difference."""
    gap = logit_mean[:, 0] - logit_mean[:, 1]
    spread = logit_covariance[:, 0, 0] + logit_covariance[:, 1, 1] - 2 * logit_covariance[:, 0, 1]
    grid = torch.linspace(-10, 10, 8_001, dtype=torch.float64)
    density = torch.exp(-0.5 * grid.square())
    values = torch.sigmoid(gap[:, None] + spread.clamp_min(0).sqrt()[:, None] * grid) * density
    first = torch.trapezoid(values, grid) / torch.trapezoid(density, grid)
    return torch.stack([first, 1 - first], dim=1)
