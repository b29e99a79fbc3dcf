"""What a trained model gave for its rows, as methods take it: outputs, last states, Gram matrices, draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.evidence.plan import SUBSETS, Unit
from laplora.errors import DataError
from laplora.linearised import contrast_mean, hessian_root

#: Beside the subsets: the Jacobians of the output layer alone, whose Gram matrix follows from the last states.
LAST_LAYER = "last_layer"


@dataclass(frozen=True)
class Rows:
    """A split's rows.

    Attributes:
        logits: (rows, classes) float64, nats; class_mask: (rows, classes) bool; labels: (rows,) int64.
        states: (rows, width) float64, what the output layer reads.
    """

    logits: torch.Tensor
    class_mask: torch.Tensor
    labels: torch.Tensor
    states: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def mean(self) -> torch.Tensor:
        """``Q^T f``, (rows, classes - 1), nats."""
        return contrast_mean(self.logits)

    @property
    def curvature_root(self) -> torch.Tensor:
        """The symmetric square root of each row's ``Lambda``, (rows, classes - 1, classes - 1)."""
        return hessian_root(self.logits, self.class_mask)

    def at(self, index: torch.Tensor) -> Rows:
        """Return some of the rows."""
        return Rows(self.logits[index], self.class_mask[index], self.labels[index], self.states[index])


@dataclass(frozen=True)
class Kernel:
    """Inner products of contrast Jacobians, float32.

    Attributes:
        gram: ((train + pool) * contrasts, (train + pool + test) * contrasts), rows and columns (row, contrast).
        test_diagonal: (test, contrasts, contrasts), each test row with itself.
        train, contrasts: how many; the pool's rows follow the training rows.
    """

    gram: torch.Tensor
    test_diagonal: torch.Tensor
    train: int
    contrasts: int

    @cached_property
    def diagonal(self) -> torch.Tensor:
        """Every training and pool row with itself, (train + pool, contrasts, contrasts)."""
        c = self.contrasts
        rows = len(self.gram) // c
        blocks = self.gram[:, : rows * c].view(rows, c, rows, c)
        return torch.stack([blocks[n, :, n] for n in range(rows)])

    def places(self, pool: torch.Tensor) -> torch.Tensor:
        """Return the rows of ``gram`` that belong to places in the pool, (places * contrasts,) int64."""
        first = (pool + self.train) * self.contrasts
        return (first[:, None] + torch.arange(self.contrasts)).flatten()


@dataclass(frozen=True)
class Outputs:
    """All arrays of one unit; ``draws`` is (draws, calibration rows) int64, places in the pool.

    ``memo`` holds what is the same for every draw, by the name of what computed it.
    """

    unit: Unit
    train: Rows
    pool: Rows
    test: Rows
    draws: torch.Tensor
    memo: dict[str, object] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Number of labels."""
        return self.test.logits.shape[1]

    def calibration(self, draw: int) -> Rows:
        """Return the rows of a calibration draw."""
        return self.pool.at(self.draws[draw])

    def kernel(self, subset: str) -> Kernel:
        """Return the Gram matrix of a subset, or of the output layer alone; read once.

        Raises:
            DataError: the unit has no such Gram matrix.
        """
        key = f"kernel {subset}"
        if key not in self.memo:
            self.memo[key] = self._last_layer() if subset == LAST_LAYER else self._stored(subset)
        found = self.memo[key]
        assert isinstance(found, Kernel)
        return found

    def _stored(self, subset: str) -> Kernel:
        path = self.unit.folder / f"gram.{subset}.safetensors"
        if subset not in SUBSETS or not path.is_file():
            raise DataError(f"{self.unit} has no Gram matrix of {subset!r}")
        stored = load_file(path)
        return Kernel(stored["gram"], stored["test_diagonal"], len(self.train), self.classes - 1)

    def _last_layer(self) -> Kernel:
        """Of the output layer's weights ``J_nc = q_c x^T``, and the contrasts are orthonormal."""
        left = torch.cat([self.train.states, self.pool.states]).float()
        every = torch.cat([left, self.test.states.float()])
        same = torch.eye(self.classes - 1)
        own = self.test.states.float().square().sum(1)[:, None, None] * same
        return Kernel(torch.kron(left @ every.T, same), own, len(self.train), self.classes - 1)


def read_outputs(unit: Unit) -> Outputs:
    """Return the arrays of a gathered unit."""
    stored = load_file(Path(unit.folder) / "outputs.safetensors")

    def rows(split: str) -> Rows:
        logits, states = (stored[f"{split}.{name}"].double() for name in ("logits", "states"))
        return Rows(logits, stored[f"{split}.class_mask"], stored[f"{split}.labels"], states)

    return Outputs(unit, rows("train"), rows("pool"), rows("test"), stored["draws"])
