"""Inner products of every two rows' contrast Jacobians, for nested subsets of the blocks.

With ``J_nc`` the Jacobian of contrast c of row n over a subset's weights, the Gram matrix is ``G[(n, c), (m, d)] =
<J_nc, J_md>``. It is all that the exact posterior, conditioning on labels and choosing labels need of the Jacobians.
Those are kept one layer after the other in bfloat16, in files of their own, and are products of that rounding.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.evidence.plan import SUBSETS, Subset
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.subset import select_blocks

#: Rows and contrasts of one product.
_CHUNK = 2048


def subset_blocks(blocks: Sequence[Block], subset: Subset) -> tuple[Block, ...]:
    """Return the blocks of a subset."""
    return select_blocks(blocks, r"regex:lora_B$" if subset == "all_b" else subset)


class JacobianStore:
    """The Jacobians of all rows on disk, by layer and by what a subset adds to the one before it.

    Args:
        folder: made anew, and removed at the end of ``jacobian_store``.
        rows, contrasts: of every row.
    """

    def __init__(self, folder: Path, blocks: Sequence[Block], rows: int, contrasts: int) -> None:
        """Make the files."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.rows, self.contrasts = rows, contrasts
        self._parts: list[tuple[int, list[int], torch.Tensor]] = []
        before: set[str] = set()
        for level, subset in enumerate(SUBSETS):
            names = {b.name for b in subset_blocks(blocks, subset)} - before
            before |= names
            by_layer: dict[str, list[int]] = {}
            for place, block in enumerate(blocks):
                if block.name in names:
                    by_layer.setdefault(block.name.partition(".self_attn")[0], []).append(place)
            for layer, places in by_layer.items():
                width = sum(blocks[p].wide * blocks[p].narrow for p in places)
                path = folder / f"{layer}.{level}"
                held = torch.from_file(str(path), shared=True, size=rows * contrasts * width, dtype=torch.bfloat16)
                self._parts.append((level, places, held.view(rows, contrasts, width)))

    def write(self, index: Sequence[int], jacobians: ContrastJacobians) -> None:
        """Keep a batch's Jacobians, of all blocks, at these rows."""
        for _, places, held in self._parts:
            found = torch.cat([jacobians.blocks[p].jacobian.flatten(2) for p in places], 2)
            held[list(index)] = found.to(torch.bfloat16)

    def grams(self, left: int) -> Iterator[tuple[Subset, torch.Tensor, torch.Tensor]]:
        """Yield by subset the Gram matrix of the first ``left`` rows with all, and the other rows' own blocks.

        The first is (left * contrasts, rows * contrasts) float32, the second (rows - left, contrasts, contrasts).
        Sums are in float32 over products that are exact there. What is yielded changes with the next subset.
        """
        total = torch.zeros(left * self.contrasts, self.rows * self.contrasts)
        own = torch.zeros(self.rows - left, self.contrasts, self.contrasts)
        for level, subset in enumerate(SUBSETS):
            for _, _, held in (part for part in self._parts if part[0] == level):
                flat = held.flatten(0, 1)
                for start in range(0, len(total), _CHUNK):
                    upper = flat[start : min(start + _CHUNK, len(total))].float()
                    for first in range(start, len(flat), _CHUNK):
                        other = flat[first : first + _CHUNK].float()
                        total[start : start + len(upper), first : first + len(other)].addmm_(upper, other.T)
                own.baddbmm_(held[left:].float(), held[left:].float().mT)
            square = total[:, : len(total)]
            for start in range(0, len(total), _CHUNK):  # the lower half is the upper one's mirror image
                end = start + _CHUNK
                square[end:, start:end] = square[start:end, end:].T
            yield subset, total, own


@contextmanager
def jacobian_store(folder: Path, blocks: Sequence[Block], rows: int, contrasts: int) -> Iterator[JacobianStore]:
    """Hold a store on disk while its Grams are computed."""
    try:
        yield JacobianStore(folder, blocks, rows, contrasts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def products_of_bfloat16() -> Iterator[None]:
    """Let matrix products of float32 take their factors as bfloat16, which is exact for factors that are."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
