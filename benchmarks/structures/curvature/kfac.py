"""Kronecker factors of single tokens (Eschenhagen et al., arXiv 2311.00636, section 3).

With ``x_nt`` the input and ``g_nct`` the output gradient of contrast c at token t of row n, N rows and T_n real tokens
in row n, the block's curvature is ``A x G`` with

- ``expand``: ``A = 1/(sum_n T_n) sum_nt x_nt x_nt^T``, ``G = sum_nt sum_cc' Lambda_cc' g_nct g_nc't^T``: every token
  as a row, which leaves out what two tokens of a row have in common;
- ``last``: both at the last token only, ``A`` with ``1/N``.

With one token in every row both are ``laplora.posterior.kronecker``'s factors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from laplora.errors import FactorizationError
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.posterior.eigen import EigenPosterior
from laplora.posterior.kronecker import KroneckerSums, add_batch, empty_sums, kfac_posterior, kronecker_bases
from laplora.posterior.passes import Pass, StructureSettings
from laplora.posterior.sketch import sketch_matrix, stored_basis


@dataclass(frozen=True)
class TokenSums(KroneckerSums):
    """Sums of both factors with tokens as terms; ``terms``: (blocks,) float64, real tokens."""

    terms: torch.Tensor


def fit_kfac_expand(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> EigenPosterior:
    """Return the posterior of every token's factors; one pass, ``factors``."""
    sums = run_pass("factors", empty_token_sums(settings, blocks), add_expand_batch)
    return _posterior(settings, blocks, per_row(sums))


def fit_kfac_last(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> EigenPosterior:
    """Return the posterior of the last tokens' factors; one pass, ``factors``."""

    def add(state: KroneckerSums, jacobians: ContrastJacobians, class_mask: torch.Tensor) -> KroneckerSums:
        return add_batch(state, last_tokens(jacobians), class_mask)

    return _posterior(settings, blocks, run_pass("factors", _empty(settings, blocks), add))


def _posterior(settings: StructureSettings, blocks: tuple[Block, ...], sums: KroneckerSums) -> EigenPosterior:
    bases = tuple(stored_basis(b, settings.basis_dtype) for b in kronecker_bases(sums, settings.rank))
    return kfac_posterior(blocks, bases, sums.rows, settings.structure)


def _empty(settings: StructureSettings, blocks: tuple[Block, ...]) -> KroneckerSums:
    return empty_sums(blocks, sketch_columns=settings.rank + settings.oversampling, seed=settings.seed)


def empty_token_sums(settings: StructureSettings, blocks: tuple[Block, ...]) -> TokenSums:
    empty = _empty(settings, blocks)
    return TokenSums(**vars(empty), terms=torch.zeros(len(blocks), dtype=torch.float64))


def add_expand_batch(sums: TokenSums, jacobians: ContrastJacobians, class_mask: torch.Tensor) -> TokenSums:
    """Return the sums with one batch's tokens added."""
    hessian = jacobians.curvature(class_mask)
    wide, narrow, traces, terms = [], [], [], []
    for i, (block, part) in enumerate(zip(sums.blocks, jacobians.blocks, strict=True)):
        inputs, gradients, counts = every_token(part)
        # Padding is zero on both sides and adds nothing; it is no term either.
        flat, gradients = inputs.flatten(0, 1).double(), gradients.double()
        weighted = torch.einsum("ncd,ncto->ndto", hessian, gradients).flatten(0, 2)
        gradients = gradients.flatten(0, 2)
        large, other, small = (flat, flat, (weighted, gradients))
        if block.group == "lora_B":
            large, other, small = (weighted, gradients, (flat, flat))
        test = sketch_matrix(block, sums.wide[i].shape[1], sums.seed).to(hessian.device)
        wide.append(sums.wide[i] + (large.T @ (other @ test)).cpu())
        narrow.append(sums.narrow[i] + (small[0].T @ small[1]).cpu())
        traces.append((large * other).sum())
        terms.append(counts.sum())
    return replace(
        sums,
        rows=sums.rows + len(hessian),
        wide=tuple(wide),
        narrow=tuple(narrow),
        wide_trace=sums.wide_trace + torch.stack(traces).cpu(),
        terms=sums.terms + torch.stack(terms).cpu(),
    )


def per_row(sums: TokenSums) -> KroneckerSums:
    """Return sums whose factors over inputs, divided by the number of rows, are means over tokens."""
    wide, narrow, traces = [], [], []
    for i, block in enumerate(sums.blocks):
        ratio = sums.rows / float(sums.terms[i])
        over_inputs = block.group == "lora_A"
        wide.append(sums.wide[i] * (ratio if over_inputs else 1))
        narrow.append(sums.narrow[i] * (1 if over_inputs else ratio))
        traces.append(sums.wide_trace[i] * (ratio if over_inputs else 1))
    return replace(sums, wide=tuple(wide), narrow=tuple(narrow), wide_trace=torch.stack(traces))


def last_tokens(jacobians: ContrastJacobians) -> ContrastJacobians:
    """Return Jacobians whose sums over tokens are those of the last token alone; rows are padded on the left."""
    parts = []
    for part in jacobians.blocks:
        inputs, gradients, _ = every_token(part)
        parts.append(replace(part, mean_input=inputs[:, -1], summed_gradient=gradients[:, :, -1]))
    return replace(jacobians, blocks=tuple(parts))


def every_token(part: BlockJacobian) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return one block's inputs, output gradients and token counts; FactorizationError where Jacobians have none."""
    if part.inputs is None or part.gradients is None or part.token_counts is None:
        raise FactorizationError("last and expand factors need Jacobians with every token, got their sums only")
    return part.inputs, part.gradients, part.token_counts
