"""The two spaces in which a head is solved: its rows, by the Gram matrix, or its features. The smaller one is taken.

Logits are ``F = base + A u`` with ``A = [Z_b sqrt(v_b)]`` of standardised blocks ``Z_b`` and weights ``u`` of unit
prior variance. The objective is ``|u|^2 / 2 - sum_n log p(y_n | F_n)``. By features a vector is ``u`` itself. By rows
it is ``alpha`` with ``u = A^T alpha``, all products go through ``K = A A^T = sum_b v_b Z_b Z_b^T``, and the inner
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

#: Bytes of the Gram matrices that are kept beyond which a head is solved by features though it has fewer rows.
MOST_GRAM_BYTES = 1 << 28
#: Bytes of standardised features up to which they are kept as float64.
_DOUBLE_BYTES = 1 << 23
#: Rows of which products are made at a time, of a symmetric matrix of them.
_SIDE = 256
#: Variance in all up to which float32 rounds Gram matrices by little beside the prior's 1 on their diagonal.
_NARROW = 1e4
#: Features up to which a preconditioner is made of their second moments, at a cost of the cube.
_MOST_MOMENTS = 3000
#: Classes up to which one preconditioner for all of them spares products (half, with six classes).
_FEW = 16
#: Mean curvature from which it is used, for float32 rounds by its inverse, and the least of a row as a share of it.
_CURVED, _LEAST_SHARE = 0.01, 0.5
#: A preconditioner's product with a vector, and the image of that.
Solve = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


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
    """Vectors are alpha, (rows, classes). With ``keep``, products are float32."""

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
            wide = fitted.double()
            yield torch.cat([gram_of(wide), answered.double() @ wide.T])

    def at(self, variances: torch.Tensor) -> RowSpace:
        space, of = copy(self), self.designs
        space.exact, space.variances = self._parts is None, variances
        narrow, rows = space.exact and float(variances.sum()) < _NARROW, len(of.fitted)
        if narrow:
            scale = variances.sqrt().repeat_interleave(torch.tensor(of.widths))
            whole = gram_of(of.fitted * scale.to(of.fitted.dtype)).double()
        else:
            whole = torch.zeros(())
            for variance, part in zip(variances.tolist(), self._parts or self._made(), strict=True):
                whole = whole + variance * part
        space.cross, space.gram = whole[rows:], whole[:rows] if space.exact else whole[:rows].float()
        space.rough = copy(space) if narrow else space
        space.rough.gram = space.gram.float() if narrow else space.gram
        return space

    def image(self, vector: torch.Tensor) -> torch.Tensor:
        return self.designs.shaped(times(self.gram, vector))

    def pull(self, residual: torch.Tensor) -> torch.Tensor:
        return self.designs.flat(residual)

    def dot(self, first: torch.Tensor, second: torch.Tensor, image_of_second: torch.Tensor) -> float:
        return float((first * self.designs.flat(image_of_second)).sum())

    def preconditioner(self, probs: torch.Tensor) -> Solve | None:
        """Return a solver with ``I + D K``, ``D`` each row's mean curvature; it knows ``K x`` without a product.

        It is self-adjoint in the inner product by K, as the Hessian ``I + Lambda K`` is. The image that it knows is as
        exact as float32 divided by ``D``, and 0 where K has no part: steps are checked by a product.
        """
        curvatures = self.designs.flat(probs * (1 - probs))
        mean = float(curvatures.mean())
        if curvatures.shape[1] > _FEW or mean < _CURVED or float(self.variances.sum()) >= _NARROW:
            return None
        curvature = curvatures.mean(1, keepdim=True).clamp_min(_LEAST_SHARE * mean)
        root = curvature.sqrt()
        scale = root.to(self.gram.dtype)
        matrix = scale * self.gram * scale.T
        matrix.diagonal().add_(1)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:  # by rounding under a wide prior
            return None

        def solve(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            half = torch.linalg.solve_triangular(factor, (vector / root).to(factor.dtype), upper=False)
            solution = root * torch.linalg.solve_triangular(factor.mT, half, upper=True).double()
            return solution, self.designs.shaped((vector - solution) / curvature)

        return solve

    def answers(self, vector: torch.Tensor) -> torch.Tensor:
        return self.designs.shaped(times(self.cross, vector))

    def adjoint_right(self, slope: torch.Tensor, weigh: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return self.designs.flat(weigh(self.designs.shaped(times(self.cross.T, self.designs.flat(slope)))))

    def slopes(self, vector: torch.Tensor, slope: torch.Tensor, adjoint: torch.Tensor) -> torch.Tensor:
        assert self._parts is not None
        pulled = torch.cat([-adjoint, self.designs.flat(slope)])
        terms = [(times(part, vector) * pulled).sum() for part in self._parts]
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
                self._moments += gram_of(part.T)

    def at(self, variances: torch.Tensor) -> FeatureSpace:
        space = copy(self)
        space.rough, space.variances = space, variances
        space.root = variances.sqrt().repeat_interleave(torch.tensor(self.designs.widths))[:, None]
        return space

    def _times(self, design: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        weights = self.root * vector
        if self.exact:
            return self.designs.shaped(
                torch.cat([times(part.double(), weights) for part in torch.split(design, CHUNK)])
            )
        return self.designs.shaped(times(design, weights))

    def _transposed(self, design: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        rows = self.designs.flat(logits)
        total = _transposed(design, rows) if self.exact else times(design.T, rows)
        return self.root * total

    def image(self, vector: torch.Tensor) -> torch.Tensor:
        return self._times(self.designs.fitted, vector)

    def pull(self, residual: torch.Tensor) -> torch.Tensor:
        return self._transposed(self.designs.fitted, residual)

    def dot(self, first: torch.Tensor, second: torch.Tensor, image_of_second: torch.Tensor) -> float:
        return float((first * second).sum())

    def preconditioner(self, probs: torch.Tensor) -> Solve | None:
        """Return a solver with ``I + c A^T A``, ``c`` the mean curvature: near the Hessian where rows are alike."""
        if self._moments is not None:
            matrix = float((probs * (1 - probs)).mean()) * self.root * self._moments * self.root.T
            matrix.diagonal().add_(1)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if not failed:  # by rounding of float32 products under a wide prior
                return lambda vector: (solution := torch.cholesky_solve(vector, factor), self.image(solution))
        return None

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
    kept = len(designs.widths) if keep else 1
    small = 8 * rows * (rows + len(designs.answered)) * kept <= MOST_GRAM_BYTES
    return RowSpace(designs, keep) if rows < width and small else FeatureSpace(designs, exact)


def times(matrix: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return ``matrix @ columns`` float64, made in the matrix's number format.

    A few columns are two to five times as fast by their transpose, in which each is contiguous.
    """
    return (columns.T.to(matrix.dtype) @ matrix.T).T.double()


def gram_of(design: torch.Tensor) -> torch.Tensor:
    """Return ``design design^T``, (rows, rows), at little more than half the cost of the product."""
    gram = design.new_empty(len(design), len(design))
    for end in range(0, len(design), _SIDE):
        side = slice(end, end + _SIDE)
        torch.mm(design[side], design[: end + _SIDE].T, out=gram[side, : end + _SIDE])
        gram[:end, side] = gram[side, :end].T
    return gram


def _transposed(design: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return ``design^T rows`` float64, a few rows at a time."""
    total = torch.zeros(design.shape[1], rows.shape[1], dtype=torch.float64)
    for part, some in zip(torch.split(design, CHUNK), torch.split(rows, CHUNK), strict=True):
        total += times(part.double().T, some)
    return total
