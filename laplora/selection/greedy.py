"""Greedy batches: the row that adds most, given those that are already chosen.

In the linearised model a label of row x sees its contrasts ``z_x`` with precision ``Lambda_x``. With
``K = k(X, X)`` the joint covariance of the contrasts of the chosen rows X and ``R R = Lambda``, their labels are
expected to tell about the weights, and so about all contrasts,

    information:  ``1/2 log det (I + R K R)``, nats

(the Gaussian form of BatchBALD, Kirsch et al., arXiv 1906.08158; MacKay 1992, *Information-based objective functions
for active data selection*). And they are expected to take from the loss of the pool's rows t, to second order,

    prediction:  ``1/2 sum_t tr Lambda_t (k(t, t) - k(t, t | X))``, nats

(V-optimality; Cohn 1996, *Neural network exploration using optimal experiment design*; the aim of EPIG, Bickford Smith
et al., arXiv 2304.08151). ``information`` is submodular, so a greedy batch has at least 1 - 1/e of the best one's.

With features ``K = Phi Phi^T`` both keep one square of directions a row, and a step costs one product with Phi.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from laplora.errors import ConfigError
from laplora.selection.candidates import CandidateRows

Objective = Literal["information", "prediction"]


@dataclass(frozen=True)
class Selection:
    """Rows in the order to label.

    Attributes:
        order: (chosen,) int64; gains: (chosen,) float64, what each adds to those before it, nats.
    """

    order: torch.Tensor
    gains: torch.Tensor


def greedy(
    rows: CandidateRows,
    count: int,
    objective: Objective = "information",
    allowed: torch.Tensor | None = None,
) -> Selection:
    """Return a batch in the order to label, of at most ``count`` rows.

    The time is about ``rows * count * directions ** 2 * features`` multiplications.

    Args:
        allowed: (rows,) bool, what may be chosen; every row counts among those that ``prediction`` is for. None: all.

    Raises:
        ConfigError: fewer than one row to choose, or none that may be.
    """
    free = torch.ones(len(rows), dtype=torch.bool) if allowed is None else allowed.clone()
    count = min(count, int(free.sum()))
    if count < 1:
        raise ConfigError("no row can be chosen: give candidates that may be, and a count of at least 1")
    state = _State(rows, objective)
    order: list[int] = []
    gains: list[float] = []
    for _ in range(count):
        gain = state.gains().masked_fill(~free, -torch.inf)
        best = int(gain.argmax())
        order.append(best)
        gains.append(float(gain[best]))
        free[best] = False
        state.choose(best)
    return Selection(torch.tensor(order), torch.tensor(gains, dtype=torch.float64))


class _State:
    """Every row's covariance given the chosen rows' labels."""

    def __init__(self, rows: CandidateRows, objective: Objective) -> None:
        self._rows, self._objective = rows, objective
        phi, root = rows.features, rows.root
        self._covariance = (phi @ phi.mT).double()
        self._moves: list[torch.Tensor] = []
        if objective == "prediction":
            weighted = (root.to(phi) @ phi).flatten(0, 1)
            self._targets = weighted.T @ weighted
            self._reach = (phi @ self._targets @ phi.mT).double()

    def gains(self) -> torch.Tensor:
        """Return what each row would add, (rows,) float64, nats."""
        factor = self._factor(slice(None))
        if self._objective == "information":
            told: torch.Tensor = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            return told
        half = self._half(slice(None), factor)
        gain: torch.Tensor = torch.einsum("nij,nik,nkj->n", half, self._reach, half) / 2
        return gain

    def choose(self, row: int) -> None:
        """Condition every row's covariance on a label of one."""
        phi = self._rows.features
        half = self._half([row], self._factor([row]))[0].to(phi)
        move = self._conditioned(phi[row].T) @ half  # (features, directions)
        seen = phi @ move
        if self._objective == "prediction":
            pull = self._targets @ move
            reach = (phi @ self._conditioned(pull)).double()
            both = reach @ seen.double().mT
            self._reach += seen.double() @ (move.T @ pull).double() @ seen.double().mT - both - both.mT
        self._covariance -= (seen @ seen.mT).double()
        self._moves.append(move)

    def _factor(self, of: slice | list[int]) -> torch.Tensor:
        """Return the lower factor of ``I + R V R`` of rows, V their covariance given the chosen rows."""
        root = self._rows.root[of]
        inner = root @ self._covariance[of] @ root
        unit = torch.eye(inner.shape[-1], dtype=inner.dtype)
        lower: torch.Tensor = torch.linalg.cholesky(unit + (inner + inner.mT) / 2)
        return lower

    def _half(self, of: slice | list[int], factor: torch.Tensor) -> torch.Tensor:
        """Return H with ``H H^T = R (I + R V R)^-1 R``."""
        half: torch.Tensor = torch.linalg.solve_triangular(factor, self._rows.root[of], upper=False)
        return half.mT

    def _conditioned(self, columns: torch.Tensor) -> torch.Tensor:
        """Return the covariance of the features' weights given the chosen rows, times columns (features, k)."""
        taken = [move @ (move.T @ columns) for move in self._moves]
        return columns - torch.stack(taken).sum(0) if taken else columns
