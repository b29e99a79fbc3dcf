"""A fitted head, without rows: what a file holds and what answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from laplora.head.errors import HeadError
from laplora.head.likelihood import Likelihood, log_probs_of
from laplora.head.posterior import POINTS, Predictive, Spread, averaged
from laplora.head.rows import Features, Given, Rows, checked_rows, named_blocks
from laplora.head.scaling import CHUNK, Scaling


@dataclass(frozen=True)
class Head:
    """A generalised linear model of class logits, ``offset / temperature + sum_b Z_b W_b + constant``.

    Attributes:
        likelihood: ``categorical`` or ``bernoulli``; scaling: that makes ``Z_b`` of a block of features.
        weights: (width, classes) float64 by block; of options (width, 1), one vector for all of them.
        constant: (classes,) float64, nats; of options it is empty.
        classes: of a row; precisions: of the prior by block, and of the constant as ``constant``.
        inverse_temperature: factor of the offset; None: the head takes no offset.
        spread: the posterior's; None of a fold's head.
    """

    likelihood: Likelihood
    scaling: Scaling = field(repr=False)
    weights: Mapping[str, torch.Tensor] = field(repr=False)
    constant: torch.Tensor = field(repr=False)
    classes: int
    precisions: Mapping[str, float]
    inverse_temperature: float | None
    spread: Spread | None = field(default=None, repr=False)

    @property
    def conditional(self) -> bool:
        """Whether features are of options, (rows, options, width)."""
        return not len(self.constant)

    def logits(self, features: Features, offset: Given = None, class_mask: Given = None) -> torch.Tensor:
        """Return (rows, classes) float64 logits, nats; arguments and errors as ``log_probs``."""
        return self.logits_of(self._checked(features, offset, class_mask))

    def log_probs(self, features: Features, offset: Given = None, class_mask: Given = None) -> torch.Tensor:
        """Return (rows, classes) float64 log probabilities at the mode, nats; -inf at impossible classes.

        Args:
            features: blocks as they were fitted, (rows, width) or (rows, options, width), from any device.
            offset: (rows, classes), where the head was fitted with one.
            class_mask: (rows, classes) bool; None: every class is possible.

        Raises:
            HeadError: other blocks or shapes than fitted, or an offset where none was, or none where one was.
        """
        rows = self._checked(features, offset, class_mask)
        return log_probs_of(self.likelihood, self.logits_of(rows), rows.class_mask)

    def predictive(
        self, features: Features, offset: Given = None, class_mask: Given = None, *, points: int = POINTS
    ) -> Predictive:
        """Return answers at the mode and averaged over the posterior, with their spread; arguments as ``log_probs``.

        Args:
            points: quasi-random points of the average, an even number.

        Raises:
            HeadError: as ``log_probs``; the head of a fold, which has no posterior.
        """
        if self.spread is None:
            raise HeadError("the head of a fold has no posterior")
        rows = self._checked(features, offset, class_mask)
        scaled = {name: self.scaling.apply(name, rows.blocks[name], rows.class_mask) for name in self.weights}
        if not self.conditional:
            scaled["constant"] = torch.ones(len(rows), 1, dtype=torch.float64)
        variances = {name: 1 / precision for name, precision in self.precisions.items()}
        return averaged(self.spread, scaled, variances, self.logits_of(rows), rows.class_mask, self.likelihood, points)

    def logits_of(self, rows: Rows) -> torch.Tensor:
        """Return (rows, classes) float64 logits of checked rows, nats."""
        total = torch.zeros(rows.class_mask.shape, dtype=torch.float64)
        for start in range(0, len(rows), CHUNK):
            some = slice(start, start + CHUNK)
            for name, weights in self.weights.items():
                scaled = self.scaling.apply(name, rows.blocks[name][some], rows.class_mask[some])
                total[some] += (scaled @ weights).view(total[some].shape)
        total = total if self.conditional else total + self.constant
        return total if rows.offset is None else total + (self.inverse_temperature or 0.0) * rows.offset

    def _checked(self, features: Features, offset: Given, class_mask: Given) -> Rows:
        """Return the inputs as rows of no label."""
        blocks = named_blocks(features)
        if set(blocks) != set(self.weights):
            raise HeadError(f"the head needs the blocks {sorted(self.weights)}, got {sorted(blocks)}")
        first = next(iter(blocks.values()))
        if (first.ndim == 3) != self.conditional:
            expected = "(rows, options, width)" if self.conditional else "(rows, width)"
            raise HeadError(f"the head was fitted on {expected}, got {tuple(first.shape)}")
        if (offset is None) != (self.inverse_temperature is None):
            raise HeadError("give an offset to a head that was fitted with one, and to no other")
        shape = (len(first), first.shape[1] if self.conditional else self.classes)
        return checked_rows(blocks, torch.zeros(shape), offset, class_mask, None, self.likelihood, labelled=False)
