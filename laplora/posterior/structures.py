"""Fitting a posterior of any structure: which passes over the training rows it takes, and what they give.

A pass is a sum over the training rows, or a list that grows with them; the caller decides where the rows'
Jacobians come from (a model, a store) and whether a pass that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.base import Granularity, Posterior
from laplora.posterior.curvature import (
    EigenSums,
    Kind,
    KroneckerBasis,
    add_batch,
    add_eigen_batch,
    empty_eigen_sums,
    empty_sums,
    kronecker_bases,
    stored_basis,
)
from laplora.posterior.diagonal import (
    DiagonalPosterior,
    add_diagonal_batch,
    diagonal_posterior,
    empty_diagonal_sums,
)
from laplora.posterior.eigen import EigenPosterior, build_posterior, kronecker_posterior
from laplora.posterior.joint import JOINT_STRUCTURES, JointPosterior
from laplora.posterior.joint_fit import (
    EXACT_LIMIT,
    ExactRows,
    add_exact_batch,
    add_feature_batch,
    add_kernel_batch,
    add_sketch_batch,
    ella_features,
    ella_from_sums,
    empty_feature_sums,
    empty_kernel_rows,
    empty_sketch,
    joint_from_rows,
    joint_from_sketch,
)
from laplora.posterior.moments import add_moment_batch, empty_moments, moment_bases


@dataclass(frozen=True)
class StructureSettings:
    """Which posterior, and how large.

    Attributes:
        structure: one of ``STRUCTURES``.
        rank: kept eigenvectors k of each wide Kronecker factor; for ``joint_core`` their mean over the blocks.
        oversampling: extra sketch columns beyond the rank.
        joint_rank: directions kept of the curvature over all blocks together.
        seed: of the random test matrices.
        basis_dtype: number format in which bases will be stored; they are rounded before curvature is measured
            in them.
        exact_limit: rows * (classes - 1) up to which ``exact`` is fitted; its memory grows with the number times the
            parameters, its time with the cube of the number.
    """

    structure: str = "joint_core"
    rank: int = 5
    oversampling: int = 10
    joint_rank: int = 50
    seed: int = 0
    basis_dtype: torch.dtype = torch.float32
    exact_limit: int = EXACT_LIMIT


class Rows(Protocol):
    """State of a pass: a frozen dataclass of ints and (tuples of) tensors."""

    @property
    def rows(self) -> int:
        """Training rows that it holds."""


State = TypeVar("State", bound=Rows)


class Pass(Protocol):
    """Runs one pass over all training rows."""

    def __call__(
        self, title: str, empty: State, add: Callable[[State, ContrastJacobians, torch.Tensor], State]
    ) -> State:
        """Return the state after every training row, in the same order in every pass.

        Args:
            title: names the pass, one word; two passes of one fit have two titles.
            empty: the state of no rows.
            add: returns a state with one batch's Jacobians added, given its class mask.
        """


Fitter = Callable[[StructureSettings, tuple[Block, ...], Pass], Posterior]


def fit_posterior(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> Posterior:
    """Return the posterior of the training rows that ``run_pass`` goes over.

    Args:
        blocks: what the posterior covers, and what ``run_pass`` computes Jacobians of.

    Raises:
        ConfigError: no such structure, or more rows than ``exact`` takes.
        FactorizationError: no rows, or a curvature that stays indefinite.
        NonFiniteError: Jacobians or logits that are NaN or infinite.
    """
    if settings.structure not in FITTERS:
        raise ConfigError(f"no posterior structure {settings.structure!r}; there are {', '.join(FITTERS)}")
    return FITTERS[settings.structure](settings, blocks, run_pass)


def fit_ekfac(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> EigenPosterior:
    """Return the block-diagonal posterior with the GGN's diagonal measured in the Kronecker eigenbases.

    Two passes, ``factors`` and ``scales``.
    """
    bases, _ = _fit_factors(settings, blocks, run_pass, "reduce")

    def add(state: EigenSums, jacobians: ContrastJacobians, class_mask: torch.Tensor) -> EigenSums:
        return add_eigen_batch(state, jacobians, bases, class_mask)

    return build_posterior(blocks, bases, run_pass("scales", empty_eigen_sums(bases), add))


def fit_kfac(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> EigenPosterior:
    """Return the block-diagonal posterior of one kind of KFAC; one pass, ``factors``."""
    bases, rows = _fit_factors(settings, blocks, run_pass, _KINDS[settings.structure])
    return kronecker_posterior(blocks, bases, rows, settings.structure)


def _fit_factors(
    settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass, kind: Kind
) -> tuple[tuple[KroneckerBasis, ...], int]:
    columns = settings.rank + settings.oversampling
    empty = empty_sums(blocks, sketch_columns=columns, seed=settings.seed, kind=kind)
    sums = run_pass("factors", empty, add_batch)
    bases = tuple(stored_basis(b, settings.basis_dtype) for b in kronecker_bases(sums, settings.rank))
    return bases, sums.rows


def granularities(structure: str) -> tuple[Granularity, ...]:
    """Return the granularities of prior that a structure takes: blocks that vary together share a precision."""
    if structure == "ella":
        return ("scalar",)
    return ("scalar", "group") if structure in JOINT_STRUCTURES else ("scalar", "group", "module")


def needs_sums(structure: str) -> bool:
    """Return whether a structure's passes need the sums over tokens beside the Jacobians."""
    return structure in ("ekfac", *_KINDS)


def needs_tokens(structure: str) -> bool:
    """Return whether a structure's passes need Jacobians with every token's input and gradient."""
    return _KINDS.get(structure, "reduce") != "reduce"


_KINDS: dict[str, Kind] = {"kfac_reduce": "reduce", "kfac_expand": "expand", "kfac_last": "last"}


def fit_diagonal(_settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> DiagonalPosterior:
    """Return the posterior with the GGN's diagonal; one pass, ``diagonal``."""
    return diagonal_posterior(run_pass("diagonal", empty_diagonal_sums(blocks), add_diagonal_batch))


def fit_joint_core(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> JointPosterior:
    """Return the posterior of the leading curvature over all blocks inside bases of their Jacobians.

    Two passes, ``moments`` and ``core``.
    """
    bases = tuple(stored_basis(b, settings.basis_dtype) for b in _fit_moments(settings, blocks, run_pass))
    empty = empty_sketch(blocks, columns=_joint_columns(settings), seed=settings.seed, bases=bases)
    sketch = run_pass("core", empty, partial(add_sketch_batch, bases=bases))
    return joint_from_sketch(sketch, settings.joint_rank, settings.basis_dtype, bases)


def _fit_moments(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> tuple[KroneckerBasis, ...]:
    """Return the bases; the moments, several times as large, are let go before the next pass."""
    empty = empty_moments(blocks, rank=settings.rank, oversampling=settings.oversampling, seed=settings.seed)
    return moment_bases(run_pass("moments", empty, add_moment_batch), settings.rank)


def fit_joint(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> JointPosterior:
    """Return the posterior of the leading curvature over all parameters; one pass, ``joint``."""
    empty = empty_sketch(blocks, columns=_joint_columns(settings), seed=settings.seed)
    sketch = run_pass("joint", empty, add_sketch_batch)
    return joint_from_sketch(sketch, settings.joint_rank, settings.basis_dtype)


def fit_exact(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> JointPosterior:
    """Return the posterior of the exact GGN, from every row's gradients; one pass, ``exact``."""
    rows = run_pass("exact", ExactRows(blocks, 0, ()), partial(add_exact_batch, limit=settings.exact_limit))
    return joint_from_rows(rows, settings.basis_dtype)


def fit_ella(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> JointPosterior:
    """Return the posterior inside the span of tangent-kernel features; two passes, ``kernel`` and ``features``."""
    empty = empty_kernel_rows(blocks, settings.seed)
    rows = run_pass("kernel", empty, partial(add_kernel_batch, features=settings.joint_rank))
    posterior = ella_features(rows, settings.joint_rank, settings.basis_dtype)
    sums = run_pass("features", empty_feature_sums(posterior), partial(add_feature_batch, posterior=posterior))
    return ella_from_sums(posterior, sums)


def _joint_columns(settings: StructureSettings) -> int:
    """Columns of a joint sketch: at least twice the rank.

    The spectrum over all blocks falls slowly. On a tiny Llama, rank 10 of 60 rows, twice the rank holds 0.9 of the
    best trace of that rank, four times 0.97; at rank 40 it is 0.99 and 1.
    """
    return settings.joint_rank + max(settings.joint_rank, settings.oversampling)


#: How each structure is fitted.
FITTERS: dict[str, Fitter] = {
    "ekfac": fit_ekfac,
    **dict.fromkeys(_KINDS, fit_kfac),
    "diagonal": fit_diagonal,
    "joint_core": fit_joint_core,
    "joint": fit_joint,
    "exact": fit_exact,
    "ella": fit_ella,
}
#: Names of the structures.
STRUCTURES = tuple(FITTERS)
