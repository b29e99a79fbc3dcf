"""The settings of a fit of any structure, and its passes over the training rows.

A pass is a sum over the training rows. The caller decides where the rows' Jacobians come from and whether a pass that
was stopped is resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from laplora.errors import FactorizationError, NonFiniteError
from laplora.jacobians.blocks import ContrastJacobians


@dataclass(frozen=True)
class StructureSettings:
    """Which posterior, and how large.

    Attributes:
        structure: one of ``laplora.posterior.structures.STRUCTURES``.
        rank: kept eigenvectors k of each wide Kronecker factor; for ``joint_core`` their mean over the blocks.
        oversampling: extra sketch columns beyond the rank.
        joint_rank: directions kept of the curvature over all blocks together.
        seed: of the random test matrices.
        basis_dtype: number format in which bases will be stored; they are rounded before curvature is measured
            in them.
    """

    structure: str = "joint_core"
    rank: int = 5
    oversampling: int = 10
    joint_rank: int = 50
    seed: int = 0
    basis_dtype: torch.dtype = torch.float32


class Rows(Protocol):
    """State of a pass: a frozen dataclass of ints and (tuples of) tensors.

    Tensors and tuples of them are sums over rows, so that states of disjoint rows add up. ``rows`` is the only int that
    grows.
    """

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


def check_curvature(name: str, *tensors: torch.Tensor) -> None:
    """Raise NonFiniteError where a batch's curvature holds NaN or infinity; ``name`` says of what it is."""
    if not all(bool(t.isfinite().all()) for t in tensors):
        raise NonFiniteError(
            f"the curvature of {name} is not finite: the model's activations or gradients overflow or hold NaN on "
            "these rows; check the base weights, or use dtype float32"
        )


def check_any_rows(state: Rows) -> None:
    """Raise FactorizationError where a pass saw no rows."""
    if state.rows == 0:
        raise FactorizationError("no rows were summed: nothing has no curvature")
