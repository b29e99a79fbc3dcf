"""What a selection sees of the rows of a pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.errors import DataError


@dataclass(frozen=True)
class CandidateRows:
    """The joint covariance of the contrasts of a pool, ``k(X, X) = Phi Phi^T``, and what a label sees of it.

    Attributes:
        features: (rows, directions, features), Phi, nats.
        root: (rows, directions, directions) float64, the symmetric root of the Hessian ``Lambda`` of each row's loss.
    """

    features: torch.Tensor
    root: torch.Tensor

    def __post_init__(self) -> None:
        """Check the shapes; DataError where they do not fit."""
        rows, directions = self.features.shape[:2]
        if self.root.shape != (rows, directions, directions):
            raise DataError(f"features {tuple(self.features.shape)} do not go with roots {tuple(self.root.shape)}")

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def of_kernel(cls, kernel: torch.Tensor, root: torch.Tensor) -> CandidateRows:
        """Return rows of a whole kernel (rows, directions, rows, directions), nats squared; exact up to rounding."""
        rows, directions = kernel.shape[:2]
        flat = kernel.double().reshape(rows * directions, -1)
        values, vectors = torch.linalg.eigh((flat + flat.T) / 2)
        features = vectors * values.clamp_min(0).sqrt()
        return cls(features.view(rows, directions, -1), root)
