"""The inputs of a method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.evidence.passes import Passes
from laplora.experts.base import Labelled, Outputs
from laplora.head import fold_numbers
from laplora.linearised import entropy
from laplora.prompts.examples import Example


@dataclass(frozen=True)
class Given:
    """The inputs of a method, of one draw.

    Attributes:
        rows: the labelled rows, those that train the adapter first; test_rows: those that judge.
        outputs: of the labelled rows; labelled: their labels; test: outputs of the test rows.
        passes: of the cell; None of answers that are read from a file; kept: what methods share of a draw, by name.
    """

    rows: Sequence[Example]
    test_rows: Sequence[Example]
    outputs: Outputs
    labelled: Labelled
    test: Outputs
    seed: int
    passes: Passes | None = None
    kept: dict[str, tuple[Any, float]] = field(default_factory=dict)

    @property
    def of_cell(self) -> Passes:
        """The passes of the cell, of a method that trains or reads more than its sources."""
        assert self.passes is not None
        return self.passes

    def once(self, name: str, fit: Callable[[], Any]) -> tuple[Any, float]:
        """Return what a fit gives, and its processor seconds where a method before made it, else 0."""
        if name in self.kept:
            return self.kept[name]
        started = time.process_time()
        fitted = fit()
        self.kept[name] = fitted, time.process_time() - started
        return fitted, 0.0

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Return values of the honest rows at their places among the labelled rows, (labelled, ...); NaN elsewhere."""
        every = values.new_full((len(self.labelled), *values.shape[1:]), torch.nan)
        every[self.labelled.honest] = values
        return every


def labelled_of(labels: torch.Tensor, class_mask: torch.Tensor, honest: torch.Tensor, seed: int) -> Labelled:
    """Return labels with the folds that a fit of the product deals: those that trained an adapter apart."""
    parts = [count for count in (int((~honest).sum()), int(honest.sum())) if count]
    folds = torch.cat([fold_numbers(count, seed=seed) for count in parts])
    return Labelled(labels, class_mask, torch.arange(len(labels)), folds, honest)


def beside(one: Outputs, other: Outputs) -> Outputs:
    """Return what two sources gave of the same rows."""
    return Outputs(
        other.class_mask, {**one.log_probs, **other.log_probs}, {**one.features, **other.features}, other.covariance
    )


def texts(rows: Sequence[Example]) -> list[str]:
    """Return the fields' own texts of each row, a line each."""
    return ["\n".join(map(str, row.fields.values())) for row in rows]


def to_a_person(log_probs: torch.Tensor, unlike: torch.Tensor | None) -> torch.Tensor | None:
    """Return (rows,) entropies that no threshold accepts in rows (rows,) bool that are unlike the labelled ones."""
    return None if unlike is None else entropy(log_probs.exp()).masked_fill(unlike, torch.inf)
