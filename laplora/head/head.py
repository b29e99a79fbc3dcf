"""A fitted head, without rows: what a file holds and what answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from laplora.head.errors import HeadError
from laplora.head.likelihood import Likelihood, log_probs_of, probs_of
from laplora.head.rows import Features, Rows, checked_offset, named_blocks
from laplora.head.scaling import Scaling


@dataclass(frozen=True)
class Head:
    """A generalised linear model of class logits, ``offset / temperature + sum_b Z_b W_b + constant``.

    Attributes:
        likelihood: ``categorical`` or ``bernoulli``.
        scaling: that makes ``Z_b`` of a block of features.
        weights: (width, classes) float64 by block; of options (width, 1), one vector for all of them.
        constant: (classes,) float64, nats; of options (1,) and 0.
        classes: of a row; options at most.
        precisions: prior precision of the weights by block, and of the constant as ``constant``.
        inverse_temperature: factor of the offset; None: the head takes no offset.
    """

    likelihood: Likelihood
    scaling: Scaling
    weights: Mapping[str, torch.Tensor]
    constant: torch.Tensor
    classes: int
    precisions: Mapping[str, float]
    inverse_temperature: float | None

    def logits(
        self,
        features: Features,
        offset: torch.Tensor | None = None,
        class_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (rows, classes) float64 logits, nats; arguments and errors as ``log_probs``."""
        return self._logits(*self._checked(features, offset, class_mask))

    def log_probs(
        self,
        features: Features,
        offset: torch.Tensor | None = None,
        class_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (rows, classes) float64 log probabilities at the mode, nats; -inf at impossible classes.

        Args:
            features: blocks as they were fitted, (rows, width) or (rows, options, width), from any device.
            offset: (rows, classes), where the head was fitted with one.
            class_mask: (rows, classes) bool; None: every class is possible.

        Raises:
            HeadError: other blocks or shapes than fitted, or an offset where none was, or none where one was.
        """
        blocks, kept, mask = self._checked(features, offset, class_mask)
        return log_probs_of(self.likelihood, self._logits(blocks, kept, mask), mask)

    def residual(self, rows: Rows) -> torch.Tensor:
        """Return (rows, classes) the targets less the head's probabilities, 0 at impossible classes."""
        probs = probs_of(self.likelihood, self._logits(rows.blocks, rows.offset, rows.class_mask), rows.class_mask)
        return (rows.targets - probs) * rows.class_mask

    def _logits(
        self, blocks: Mapping[str, torch.Tensor], offset: torch.Tensor | None, mask: torch.Tensor
    ) -> torch.Tensor:
        total = self.constant.expand(mask.shape) if len(self.constant) > 1 else torch.zeros(mask.shape).double()
        for name, weights in self.weights.items():
            total = total + (self.scaling.apply(name, blocks[name], mask) @ weights).reshape(mask.shape)
        return total if offset is None else total + (self.inverse_temperature or 0.0) * offset

    def _checked(
        self, features: Features, offset: torch.Tensor | None, class_mask: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, torch.Tensor]:
        blocks = named_blocks(features)
        if set(blocks) != set(self.weights):
            raise HeadError(f"the head needs the blocks {sorted(self.weights)}, got {sorted(blocks)}")
        first = next(iter(blocks.values()))
        conditional = len(self.constant) == 1
        if (first.ndim == 3) != conditional:
            raise HeadError(f"the head was fitted on {'options' if conditional else 'rows'}, got {tuple(first.shape)}")
        classes = first.shape[1] if conditional else self.classes
        mask = torch.ones(len(first), classes, dtype=torch.bool) if class_mask is None else class_mask.detach().cpu()
        if mask.shape != (len(first), classes) or mask.dtype != torch.bool:
            raise HeadError(f"class_mask must be {(len(first), classes)} bool, got {tuple(mask.shape)} {mask.dtype}")
        if (offset is None) != (self.inverse_temperature is None):
            raise HeadError("give an offset to a head that was fitted with one, and to no other")
        return blocks, checked_offset(offset, mask), mask
