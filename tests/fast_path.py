"""laplora's path from a model to a posterior, in one call, and the names that connect it to the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dense_reference as dense
import torch
from tiny_models import Task

from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrasts
from laplora.posterior.eigen import EigenPosterior
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import fit_posterior


@dataclass(frozen=True)
class Rows:
    """Jacobians of some rows, and the class mask."""

    jacobians: ContrastJacobians
    class_mask: torch.Tensor


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-11) -> None:
    """Assert agreement relative to the largest entry: small entries of a matrix carry its large ones' rounding.

    Args:
        tolerance: by default that of sums over some hundred float64 outer products in another order.
    """
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(float(expected.abs().max()), 1e-300))


def rows_of(
    model: Any,
    task: Task,
    *,
    batch_size: int,
    order: Sequence[int] | None = None,
    blocks: Sequence[Block] = (),
) -> list[Rows]:
    """Return the fast path's Jacobians of a task, by batch."""
    blocks = blocks or find_blocks(model, task.classes)
    return [
        Rows(contrast_jacobians(model, batch, task.label_ids, blocks), batch.class_mask)
        for batch in task.batches(batch_size, order)
    ]


def replay(batches: Sequence[Rows]) -> Callable[..., Any]:
    """Return a pass over stored Jacobians, as ``laplora.posterior.structures.fit_posterior`` takes it."""

    def run_pass(_title: str, empty: Any, add: Any) -> Any:
        state = empty
        for batch in batches:
            state = add(state, batch.jacobians, batch.class_mask)
        return state

    return run_pass


def fit_blocks(
    model: Any,
    task: Task,
    *,
    batch_size: int = 16,
    structure: str = "ekfac",
    rank: int = 1000,
    sketch: int = 1000,
    stored_as: torch.dtype = torch.float64,
) -> EigenPosterior:
    """Return a block-diagonal posterior; rank and sketch are cut to each block's size, so by default all is kept."""
    settings = StructureSettings(structure, rank=rank, oversampling=sketch - rank, basis_dtype=stored_as)
    run_pass = replay(rows_of(model, task, batch_size=batch_size))
    found = fit_posterior(settings, find_blocks(model, task.classes), run_pass)
    assert isinstance(found, EigenPosterior)
    return found


def key_of(block: Block) -> dense.Key:
    """Return the reference's name of a block."""
    module, _, side = block.name.rpartition(".lora_")
    return dense.Key(f"base_model.model.{module}", side)


def by_key(found: Sequence[Any], blocks: Sequence[Block]) -> dict[dense.Key, Any]:
    """Return per-block results under the reference's names."""
    return {key_of(block): item for block, item in zip(blocks, found, strict=True)}


def assert_jacobians(model: Any, task: Task, rtol: float, atol: float) -> None:
    """Assert that a padded batch has the Jacobians of one autograd call per logit and example, alone and unpadded.

    Args:
        atol: relative to a block's largest entry.
    """
    blocks = find_blocks(model, task.classes)
    found = contrast_jacobians(model, task.batch(), task.label_ids, blocks)
    logits, scale = dense.map_logits(model, task.batch(), task.label_ids), 1 + float(found.logits.abs().max())
    torch.testing.assert_close(found.logits.double(), logits, rtol=rtol, atol=atol * scale)
    mine, reference = by_key(found.blocks, blocks), dense.jacobians(model, task.batch(), task.label_ids)
    assert mine.keys() == reference.keys()
    for key, jacobian in reference.items():
        expected = torch.einsum("ncab,cd->ndab", jacobian, contrasts(task.classes))
        assert float(expected.norm()) > 1e-4
        limits = {"rtol": rtol, "atol": atol * float(expected.abs().max())}
        torch.testing.assert_close(mine[key].jacobian.double(), expected, msg=lambda m, k=key: f"{k}: {m}", **limits)


def basis_by_key(found: EigenPosterior) -> dict[dense.Key, dense.Basis]:
    """Return the bases that the fast path chose, as the reference writes them."""
    return by_key([dense.Basis(*pair) for pair in zip(found.wide, found.narrow, strict=True)], found.blocks)


def dense_ekfac(
    ggn: dict[dense.Key, torch.Tensor], bases: dict[dense.Key, dense.Basis]
) -> dict[dense.Key, torch.Tensor]:
    return {key: dense.block_curvature(basis, *dense.ekfac(ggn[key], basis)) for key, basis in bases.items()}
