"""The two spaces in which a head is solved: its rows, by the Gram matrix, or its features. The smaller one is taken.

Logits are ``F = base + A u`` with ``A = [Z_b sqrt(v_b)]`` of standardised blocks ``Z_b`` and weights ``u`` of unit
prior variance. What is minimised is ``|u|^2 / 2 - sum_n log p(y_n | F_n)``. By features a vector is ``u`` itself. By
rows it is ``alpha`` with ``u = A^T alpha``, all products go through ``K = A A^T = sum_b v_b Z_b Z_b^T``, and the inner
product of two vectors is ``a^T K b``: conjugate gradients then take one product with K a step.

Vectors are (rows or features, classes) float64; of options (rows * options or features, 1). ``image`` is ``A u`` as
(rows, classes). A constant feature of its own variance is the last block, except of options, where it has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from laplora.head.rows import Rows
from laplora.head.scaling import CHUNK, Scaling

#: Bytes of the Gram matrices of all blocks beyond which a problem is solved by features though it has fewer rows.
MOST_GRAM_BYTES = 1 << 30
#: Bytes of standardised features up to which they are kept as float64.
_DOUBLE_BYTES = 1 << 26


@dataclass(frozen=True)
class Designs:
    """Standardised blocks, with the constant last, of the rows that are fitted and of those that are answered.

    Attributes:
        fitted: (fitted, width) each; answered: (answered, width) each. Fitted rows of options count each option.
        classes: of a row.
    """

    fitted: Sequence[torch.Tensor]
    answered: Sequence[torch.Tensor]
    classes: int
    conditional: bool

    @staticmethod
    def of(rows: Rows, others: Rows | None, scaling: Scaling, exact: bool) -> Designs:
        """Return the designs, float64 where they are small and ``exact``, else float32."""
        size = sum(block.numel() for block in rows.blocks.values()) * 8
        dtype = torch.float64 if exact and size <= _DOUBLE_BYTES else torch.float32

        def design(of: Rows | None) -> list[torch.Tensor]:
            if of is None:
                return []
            parts = [scaling.apply(name, of.blocks[name], of.class_mask, dtype) for name in scaling.means]
            return parts if of.conditional else [*parts, torch.ones(len(of), 1, dtype=dtype)]

        return Designs(design(rows), design(others), rows.class_mask.shape[1], rows.conditional)

    @property
    def by_rows(self) -> bool:
        """Whether rows are the smaller space, and their Gram matrices fit."""
        rows = len(self.fitted[0])
        memory = 8 * rows * (rows + (len(self.answered[0]) if self.answered else 0)) * len(self.fitted)
        return rows < sum(block.shape[1] for block in self.fitted) and memory <= MOST_GRAM_BYTES

    def shaped(self, logits: torch.Tensor) -> torch.Tensor:
        """Return (rows, classes) of (rows * options, 1), or as it is."""
        return logits.reshape(-1, self.classes)

    def flat(self, logits: torch.Tensor) -> torch.Tensor:
        """Return (rows * options, 1) of (rows, classes), or as it is."""
        return logits.reshape(-1, 1) if self.conditional else logits


class RowSpace:
    """Vectors are alpha, (rows, classes)."""

    #: What a product loses to rounding, as a share.
    rounding = 1e-11
    variances: torch.Tensor
    gram: torch.Tensor
    cross: torch.Tensor

    def __init__(self, designs: Designs, keep: bool) -> None:
        self.designs = designs
        self._parts = [self._part(place) for place in range(len(designs.fitted))] if keep else None

    def _part(self, place: int) -> torch.Tensor:
        fitted = self.designs.fitted[place]
        whole = torch.cat([fitted, self.designs.answered[place]]) if self.designs.answered else fitted
        return whole @ fitted.T

    def at(self, variances: torch.Tensor) -> RowSpace:
        """Return the space under these block variances, (blocks,)."""
        space = object.__new__(RowSpace)
        space.designs, space._parts, space.variances = self.designs, self._parts, variances
        parts = self._parts or (self._part(place) for place in range(len(variances)))
        whole = torch.zeros(())
        for variance, part in zip(variances.tolist(), parts, strict=True):
            whole = whole + variance * part.double()
        rows = len(self.designs.fitted[0])
        space.gram, space.cross = whole[:rows], whole[rows:]
        return space

    def image(self, vector: torch.Tensor) -> torch.Tensor:
        return self.designs.shaped(self.gram @ vector)

    def pull(self, residual: torch.Tensor) -> torch.Tensor:
        return self.designs.flat(residual)

    def dot(self, first: torch.Tensor, second: torch.Tensor, image_of_second: torch.Tensor) -> float:
        return float((first * self.designs.flat(image_of_second)).sum())

    def answers(self, vector: torch.Tensor) -> torch.Tensor:
        """Return the answered rows' logits without their base."""
        return self.designs.shaped(self.cross @ vector)

    def adjoint_right(self, slope: torch.Tensor, weigh: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return the right-hand side whose solution ``slopes`` takes, of the answered loss's slope in its logits."""
        return self.designs.flat(weigh(self.designs.shaped(self.cross.T @ self.designs.flat(slope))))

    def slopes(self, vector: torch.Tensor, slope: torch.Tensor, adjoint: torch.Tensor) -> torch.Tensor:
        """Return (blocks,) derivatives of the answered rows' loss in log variances (``choice``)."""
        assert self._parts is not None
        pulled = torch.cat([-adjoint, self.designs.flat(slope)])
        terms = [((part @ vector.to(part.dtype)).double() * pulled).sum() for part in self._parts]
        return self.variances * torch.stack(terms)

    def weights(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Return each block's weights of standardised features, (width, classes or 1) float64."""
        return [
            variance * _chunked_transposed(block, vector)
            for variance, block in zip(self.variances.tolist(), self.designs.fitted, strict=True)
        ]


class FeatureSpace:
    """Vectors are u, (features, classes)."""

    variances: torch.Tensor
    root: torch.Tensor

    def __init__(self, designs: Designs, exact: bool) -> None:
        self._fitted = torch.cat(list(designs.fitted), 1)
        self._answered = torch.cat(list(designs.answered), 1) if designs.answered else self._fitted[:0]
        self._widths = [block.shape[1] for block in designs.fitted]
        self.designs = Designs((), (), designs.classes, designs.conditional)
        self._exact = exact
        self.rounding = RowSpace.rounding if exact else 1e-5

    def at(self, variances: torch.Tensor) -> FeatureSpace:
        """Return the space under these block variances, (blocks,)."""
        space = object.__new__(FeatureSpace)
        space.__dict__.update(self.__dict__)
        space.variances = variances
        space.root = variances.sqrt().repeat_interleave(torch.tensor(self._widths))[:, None]
        return space

    def _times(self, design: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if not self._exact or design.dtype == torch.float64:
            return (design @ weights.to(design.dtype)).double()
        return torch.cat([part.double() @ weights for part in torch.split(design, CHUNK)])

    def _transposed(self, design: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if not self._exact:
            return (design.T @ rows.to(design.dtype)).double()
        return _chunked_transposed(design, rows)

    def image(self, vector: torch.Tensor) -> torch.Tensor:
        return self.designs.shaped(self._times(self._fitted, self.root * vector))

    def pull(self, residual: torch.Tensor) -> torch.Tensor:
        return self.root * self._transposed(self._fitted, self.designs.flat(residual))

    def dot(self, first: torch.Tensor, second: torch.Tensor, image_of_second: torch.Tensor) -> float:
        return float((first * second).sum())

    def answers(self, vector: torch.Tensor) -> torch.Tensor:
        """Return the answered rows' logits without their base."""
        return self.designs.shaped(self._times(self._answered, self.root * vector))

    def adjoint_right(self, slope: torch.Tensor, weigh: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return the right-hand side whose solution ``slopes`` takes, of the answered loss's slope in its logits."""
        return self.root * self._transposed(self._answered, self.designs.flat(slope))

    def slopes(self, vector: torch.Tensor, slope: torch.Tensor, adjoint: torch.Tensor) -> torch.Tensor:
        """Return (blocks,) derivatives of the answered rows' loss in log variances (``choice``)."""
        parts = torch.split((vector * adjoint).sum(1), self._widths)
        return torch.stack([part.sum() for part in parts])

    def weights(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Return each block's weights of standardised features, (width, classes or 1) float64."""
        return list(torch.split(self.root * vector, self._widths))


Space = RowSpace | FeatureSpace


def space_of(designs: Designs, *, exact: bool, keep: bool = False) -> Space:
    """Return the smaller space; ``keep`` holds what many variances share."""
    return RowSpace(designs, keep) if designs.by_rows else FeatureSpace(designs, exact)


def _chunked_transposed(design: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return ``design^T rows`` float64, a few rows at a time."""
    if design.dtype == torch.float64:
        return design.T @ rows
    total = torch.zeros(design.shape[1], rows.shape[1], dtype=torch.float64)
    for part, some in zip(torch.split(design, CHUNK), torch.split(rows, CHUNK), strict=True):
        total += part.double().T @ some
    return total
