"""The posteriors of several adapters as one, each for the rows of its fold, which it was not fitted on.

Their bases differ, so nothing of them is averaged: a row's covariance is that of its fold's posterior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from laplora.errors import DataError
from laplora.jacobians.blocks import Block
from laplora.posterior.base import Posterior, ProjectedJacobians


@dataclass(frozen=True)
class FoldedPosterior:
    """One posterior a fold; ``laplora.posterior.base.Covariances``.

    Attributes:
        posteriors: of adapters that cover the same blocks.
        kept: how many coordinates each of them keeps of a row.
    """

    posteriors: tuple[Posterior, ...]
    kept: tuple[int, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return self.posteriors[0].blocks

    @property
    def rows(self) -> int:
        """Training rows summed, the mean over the folds, rounded."""
        return round(sum(posterior.rows for posterior in self.posteriors) / len(self.posteriors))

    @property
    def structure(self) -> str:
        return self.posteriors[0].structure

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the covariance of the contrasts, (batch, classes - 1, classes - 1) float64, nats squared.

        A precision is the prior's, which knows nothing of the rows: all folds have the same one.

        Args:
            projected: of ``fold_together``, or some of its rows.
        """
        rows, contrasts = projected.contrast_mean.shape
        covariance = torch.zeros(rows, contrasts, contrasts, dtype=torch.float64, device=projected.rest.device)
        assert projected.fold is not None
        for number, (posterior, kept) in enumerate(zip(self.posteriors, self.kept, strict=True)):
            places = (projected.fold == number).nonzero()[:, 0]
            if len(places):
                part = projected.take(places)
                covariance[places] = posterior.covariance(
                    replace(part, kept=part.kept[..., :kept], fold=None), precisions
                )
        return covariance


def fold_together(
    posteriors: Sequence[Posterior], parts: Sequence[ProjectedJacobians], rows: Sequence[torch.Tensor]
) -> tuple[FoldedPosterior, ProjectedJacobians]:
    """Return the posteriors of the folds as one, and their rows together in the order of their numbers.

    Args:
        parts: each fold's rows as its posterior projects them; rows: their numbers, which are 0 to rows - 1.

    Raises:
        DataError: row numbers that are not those, or another number of them than of projected rows.
    """
    order = torch.cat(list(rows))
    sizes = [len(part.contrast_mean) for part in parts]
    if sizes != [len(part) for part in rows] or not torch.equal(order.sort().values, torch.arange(sum(sizes))):
        raise DataError(f"folds of {sizes} rows do not have the numbers 0 to {sum(sizes) - 1}, each once")
    kept = tuple(part.kept.shape[-1] for part in parts)
    padded = [
        replace(part, kept=F.pad(part.kept, (0, max(kept) - size)), fold=torch.full((count,), number))
        for number, (part, size, count) in enumerate(zip(parts, kept, sizes, strict=True))
    ]
    return FoldedPosterior(tuple(posteriors), kept), ProjectedJacobians.joined(padded).take(order.argsort())
