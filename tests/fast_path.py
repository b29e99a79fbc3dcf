"""laplora's own way from a model to a posterior, in one call, and the names that connect it to the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dense_reference as dense
import torch
from tiny_models import Task

from laplora.jacobians import contrasts as jacobians
from laplora.posterior import curvature
from laplora.posterior import eigen as eigen_posterior


@dataclass(frozen=True)
class Fit:
    """Every intermediate result of the fast path on one training set."""

    blocks: tuple[jacobians.Block, ...]
    sums: curvature.KroneckerSums
    bases: tuple[curvature.KroneckerBasis, ...]
    eigen_sums: curvature.EigenSums
    posterior: eigen_posterior.EigenPosterior


def fit(
    model: Any,
    task: Task,
    *,
    batch_size: int,
    rank: int = 1000,
    sketch: int = 1000,
    order: Sequence[int] | None = None,
    stored_as: torch.dtype | None = None,
) -> Fit:
    """Return the fast path's fit.

    Args:
        rank, sketch: cut to each block's size, so by default nothing is left out.
        stored_as: round the bases to this type before the second pass, as a fit that will be stored does.
    """
    blocks = jacobians.find_blocks(model, task.classes)
    sums = curvature.empty_sums(blocks, sketch_columns=sketch, seed=0)
    for batch in task.batches(batch_size, order):
        found = jacobians.contrast_jacobians(model, batch, task.label_ids, blocks)
        sums = curvature.add_batch(sums, found, batch.class_mask)
    bases = curvature.kronecker_bases(sums, rank)
    if stored_as is not None:
        bases = tuple(curvature.stored_basis(basis, stored_as) for basis in bases)
    eigen_sums = curvature.empty_eigen_sums(bases)
    for batch in task.batches(batch_size, order):
        found = jacobians.contrast_jacobians(model, batch, task.label_ids, blocks)
        eigen_sums = curvature.add_eigen_batch(eigen_sums, found, bases, batch.class_mask)
    return Fit(blocks, sums, bases, eigen_sums, eigen_posterior.build_posterior(blocks, bases, eigen_sums))


def model_pass(
    model: Any, task: Task, blocks: Sequence[jacobians.Block], *, batch_size: int = 16, tokens: bool = False
) -> Callable[..., Any]:
    """Return a pass over a task's rows, as ``laplora.posterior.structures.fit_posterior`` takes it.

    The Jacobians are computed once, whatever the number of passes.
    """
    seen = []
    for batch in task.batches(batch_size):
        found = jacobians.contrast_jacobians(model, batch, task.label_ids, blocks, tokens=tokens)
        seen.append((found, batch.class_mask))

    def run_pass(_title: str, empty: Any, add: Any) -> Any:
        state = empty
        for found, class_mask in seen:
            state = add(state, found, class_mask)
        return state

    return run_pass


def key_of(block: jacobians.Block) -> dense.Key:
    """Return the reference's name of a block."""
    module, _, side = block.name.rpartition(".lora_")
    return dense.Key(f"base_model.model.{module}", side)


def by_key(found: Sequence[Any], blocks: Sequence[jacobians.Block]) -> dict[dense.Key, Any]:
    """Return per-block results under the reference's names."""
    return {key_of(block): item for block, item in zip(blocks, found, strict=True)}


def basis_by_key(found: Fit) -> dict[dense.Key, dense.Basis]:
    """Return the bases that the fast path chose, as the reference writes them."""
    return {
        key_of(b): dense.Basis(basis.wide, basis.narrow) for b, basis in zip(found.blocks, found.bases, strict=True)
    }
