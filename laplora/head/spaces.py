"""The two spaces in which a head is solved: its rows, by the Gram matrix, or its features. The smaller one is taken.

Logits are ``F = base + A u`` with ``A = [Z_b sqrt(v_b)]`` of standardised blocks ``Z_b`` and weights ``u`` of unit
prior variance. What is minimised is ``|u|^2 / 2 - sum_n log p(y_n | F_n)``. By features a vector is ``u`` itself. By
rows it is ``alpha`` with ``u = A^T alpha``, all products go through ``K = A A^T = sum_b v_b Z_b Z_b^T``, and the inner
product of two vectors is ``a^T K b``: conjugate gradients then take one product with K a step.

Vectors are (rows or features, classes) float64; of options (rows * options or features, 1). A constant feature of its
own variance is the last block, except of options, where it has no effect. Both spaces have, ``at`` some variances of
the blocks: ``image``, ``A u`` as (rows, classes), and ``pull``, its transpose; ``answers``, the same of the rows that
are answered; ``weights`` of standardised features by block. ``adjoint_right`` takes the slope of the answered rows'
loss in their logits, and ``slopes`` what the Hessian makes of that: derivatives in log variances (``choice``).
``rough`` is the space with products of float32, by which steps are solved; what is left of them is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import torch

from laplora.head.rows import Rows
from laplora.head.scaling import CHUNK, Scaling

#: Bytes of a fold's Gram matrices of all blocks beyond which it is solved by features though it has fewer rows.
MOST_GRAM_BYTES = 1 << 28
#: Bytes of standardised features up to which they are kept as float64.
_DOUBLE_BYTES = 1 << 25
#: Variance in all up to which float32 rounds Gram matrices by far less than the prior's 1 on their diagonal.
_NARROW = 1e4
#: Features up to which a preconditioner is made of their second moments, at a cost of the cube.
_MOST_MOMENTS = 3000


@dataclass(frozen=True)
class Designs:
    """Standardised blocks side by side, the constant last, of the rows that are fitted and of those that are answered.

    Both are (rows, width), or (rows * options, width); ``widths`` are the blocks', ``classes`` a row's. ``flat`` makes
    (rows * options, 1) of (rows, classes), or leaves it as it is, and ``shaped`` undoes it.
    """

    fitted: torch.Tensor
    answered: torch.Tensor
    widths: list[int]
    classes: int
    conditional: bool

    @staticmethod
    def of(rows: Rows, others: Rows | None, scaling: Scaling, exact: bool) -> Designs:
        """Return the designs of fitted and of other rows: float64 where they are small and ``exact``, else float32."""
        widths = [len(mean) for mean in scaling.means.values()] + ([] if rows.conditional else [1])
        size = 8 * sum(widths) * len(rows)
        dtype = torch.float64 if exact and size <= _DOUBLE_BYTES else torch.float32

        def design(of: Rows) -> torch.Tensor:
            each = of.class_mask.shape[1] if of.conditional else 1
            whole = torch.ones(len(of) * each, sum(widths), dtype=dtype)
            for name, part in zip(scaling.means, torch.split(whole, widths, 1), strict=False):
                scaling.apply(name, of.blocks[name], of.class_mask, part)
            return whole

        fitted = design(rows)
        answered = fitted[:0] if others is None else design(others)
        return Designs(fitted, answered, widths, rows.class_mask.shape[1], rows.conditional)

    def blocks(self, design: torch.Tensor) -> Sequence[torch.Tensor]:
        return torch.split(design, self.widths, 1)

    def shaped(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.reshape(-1, self.classes)

    def flat(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.reshape(-1, 1) if self.conditional else logits


class RowSpace:
    """Vectors are alpha, (rows, classes). Where ``keep`` is on, products are of float32."""

    exact: bool
    variances: torch.Tensor
    gram: torch.Tensor
    cross: torch.Tensor
    rough: RowSpace

    def __init__(self, designs: Designs, keep: bool) -> None:
        self.designs = designs
        self._parts = list(self._made()) if keep else None

    def _made(self) -> Iterator[torch.Tensor]:
        """Yield the Gram matrix of each block, (fitted + answered, fitted)."""
        of = self.designs
        for fitted, answered in zip(of.blocks(of.fitted), of.blocks(of.answered), strict=True):
            yield torch.cat([fitted, answered]).double() @ fitted.double().T

    def at(self, variances: torch.Tensor) -> RowSpace:
        space, of = copy(self), self.designs
        space.exact, space.variances = self._parts is None, variances
        narrow, rows = space.exact and float(variances.sum()) < _NARROW, len(of.fitted)
        if narrow and of.fitted.dtype == torch.float32:
            stretched = of.fitted * variances.sqrt().float().repeat_interleave(torch.tensor(of.widths))
            whole = (stretched @ stretched.T).double()
        else:
            whole = torch.zeros(())
            for variance, part in zip(variances.tolist(), self._parts or self._made(), strict=True):
                whole = whole + variance * part
        space.cross, space.gram = whole[rows:], whole[:rows] if space.exact else whole[:rows].float()
        space.rough = copy(space) if narrow else space
        space.rough.gram = space.gram.float() if narrow else space.gram
        return space

    def image(self, vector: torch.Tensor) -> torch.Tensor:
        return self.designs.shaped((self.gram @ vector.to(self.gram.dtype)).double())

    def pull(self, residual: torch.Tensor) -> torch.Tensor:
        return self.designs.flat(residual)

    def dot(self, first: torch.Tensor, second: torch.Tensor, image_of_second: torch.Tensor) -> float:
        return float((first * self.designs.flat(image_of_second)).sum())

    def preconditioner(self, curvature: float) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the identity: a factor of ``I + curvature K`` costs more than it spares."""
        return lambda vector: vector

    def answers(self, vector: torch.Tensor) -> torch.Tensor:
        return self.designs.shaped(self.cross @ vector)

    def adjoint_right(self, slope: torch.Tensor, weigh: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return self.designs.flat(weigh(self.designs.shaped(self.cross.T @ self.designs.flat(slope))))

    def slopes(self, vector: torch.Tensor, slope: torch.Tensor, adjoint: torch.Tensor) -> torch.Tensor:
        assert self._parts is not None
        pulled = torch.cat([-adjoint, self.designs.flat(slope)])
        terms = [((part @ vector) * pulled).sum() for part in self._parts]
        return self.variances * torch.stack(terms)

    def weights(self, vector: torch.Tensor) -> list[torch.Tensor]:
        return [
            variance * _transposed(block, vector)
            for variance, block in zip(self.variances.tolist(), self.designs.blocks(self.designs.fitted), strict=True)
        ]


class FeatureSpace:
    """Vectors are u, (features, classes). Unless ``exact``, products are of float32."""

    variances: torch.Tensor
    root: torch.Tensor
    rough: FeatureSpace

    def __init__(self, designs: Designs, exact: bool) -> None:
        self.designs = designs
        self.exact = exact
        self._moments = None
        if (width := designs.fitted.shape[1]) <= _MOST_MOMENTS:
            self._moments = torch.zeros(width, width, dtype=torch.float64)
            for part in torch.split(self.designs.fitted, CHUNK):
                self._moments += part.T @ part

    def at(self, variances: torch.Tensor) -> FeatureSpace:
        space = copy(self)
        space.rough, space.variances = space, variances
        space.root = variances.sqrt().repeat_interleave(torch.tensor(self.designs.widths))[:, None]
        return space

    def _times(self, design: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        weights = self.root * vector
        if self.exact:
            return self.designs.shaped(torch.cat([part.double() @ weights for part in torch.split(design, CHUNK)]))
        return self.designs.shaped((design @ weights.to(design.dtype)).double())

    def _transposed(self, design: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        rows = self.designs.flat(logits)
        total = _transposed(design, rows) if self.exact else (design.T @ rows.to(design.dtype)).double()
        return self.root * total

    def image(self, vector: torch.Tensor) -> torch.Tensor:
        return self._times(self.designs.fitted, vector)

    def pull(self, residual: torch.Tensor) -> torch.Tensor:
        return self._transposed(self.designs.fitted, residual)

    def dot(self, first: torch.Tensor, second: torch.Tensor, image_of_second: torch.Tensor) -> float:
        return float((first * second).sum())

    def preconditioner(self, curvature: float) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a solver with ``I + curvature A^T A``, near the Hessian where rows are alike."""
        if self._moments is not None:
            matrix = curvature * self.root * self._moments * self.root.T
            matrix.diagonal().add_(1)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if not failed:  # by rounding of float32 products under a wide prior
                return lambda vector: torch.cholesky_solve(vector, factor)
        return lambda vector: vector

    def answers(self, vector: torch.Tensor) -> torch.Tensor:
        return self._times(self.designs.answered, vector)

    def adjoint_right(self, slope: torch.Tensor, weigh: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return self._transposed(self.designs.answered, slope)

    def slopes(self, vector: torch.Tensor, slope: torch.Tensor, adjoint: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.sum() for part in torch.split(vector * adjoint, self.designs.widths)])

    def weights(self, vector: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.split(self.root * vector, self.designs.widths))


Space = RowSpace | FeatureSpace


def space_of(designs: Designs, *, exact: bool, keep: bool = False) -> Space:
    """Return the smaller space, where Gram matrices fit; ``keep`` holds what many variances share."""
    rows, width = designs.fitted.shape
    small = 8 * rows * (rows + len(designs.answered)) * len(designs.widths) <= MOST_GRAM_BYTES
    return RowSpace(designs, keep) if rows < width and small else FeatureSpace(designs, exact)


def _transposed(design: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return ``design^T rows`` float64, a few rows at a time."""
    total = torch.zeros(design.shape[1], rows.shape[1], dtype=torch.float64)
    for part, some in zip(torch.split(design, CHUNK), torch.split(rows, CHUNK), strict=True):
        total += part.double().T @ some
    return total
