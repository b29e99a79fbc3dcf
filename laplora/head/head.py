"""A fitted head, without rows: what a file holds and what answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from laplora.head.errors import HeadError
from laplora.head.likelihood import Likelihood, log_probs_of, probs_of
from laplora.head.posterior import POINTS, Predictive, Spread, averaged
from laplora.head.rows import Features, Rows, checked_offset, named_blocks
from laplora.head.scaling import Scaling

_LIKELIHOODS: tuple[Likelihood, ...] = ("categorical", "bernoulli")


@dataclass(frozen=True)
class Head:
    """A generalised linear model of class logits, ``offset / temperature + sum_b Z_b W_b + constant``.

    Attributes:
        likelihood: ``categorical`` or ``bernoulli``.
        scaling: that makes ``Z_b`` of a block of features.
        weights: (width, classes) float64 by block; of options (width, 1), one vector for all of them.
        constant: (classes,) float64, nats; of options it is empty.
        classes: of a row; options at most.
        precisions: prior precision of the weights by block, and of the constant as ``constant``.
        inverse_temperature: factor of the offset; None: the head takes no offset.
        spread: the posterior's, where it was fitted.
    """

    likelihood: Likelihood
    scaling: Scaling
    weights: Mapping[str, torch.Tensor]
    constant: torch.Tensor
    classes: int
    precisions: Mapping[str, float]
    inverse_temperature: float | None
    spread: Spread | None = None

    @property
    def conditional(self) -> bool:
        """Whether features are of options, (rows, options, width)."""
        return not len(self.constant)

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

    def predictive(
        self,
        features: Features,
        offset: torch.Tensor | None = None,
        class_mask: torch.Tensor | None = None,
        *,
        points: int = POINTS,
    ) -> Predictive:
        """Return answers at the mode and averaged over the posterior, with their spread; arguments as ``log_probs``.

        Args:
            points: quasi-random points of the average, an even number.

        Raises:
            HeadError: as ``log_probs``; the head was fitted without a posterior.
        """
        if self.spread is None:
            raise HeadError("the head has no posterior: fit it with posterior=True")
        blocks, kept, mask = self._checked(features, offset, class_mask)
        scaled = {name: self.scaling.apply(name, blocks[name], mask) for name in self.weights}
        if not self.conditional:
            scaled["constant"] = torch.ones(len(mask), 1, dtype=torch.float64)
        variances = {name: 1 / precision for name, precision in self.precisions.items()}
        logits = self._logits(blocks, kept, mask)
        return averaged(self.spread, scaled, variances, logits, mask, self.likelihood, points)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all that the head is, for a file without pickles; ``of`` reads it back bit for bit."""
        kind = [_LIKELIHOODS.index(self.likelihood), self.classes]
        tensors = {
            "kind": torch.tensor(kind),
            "constant": self.constant,
            "inverse_temperature": torch.tensor(
                [] if self.inverse_temperature is None else [self.inverse_temperature], dtype=torch.float64
            ),
        }
        for name, weights in self.weights.items():
            tensors[f"mean/{name}"] = self.scaling.means[name]
            tensors[f"factor/{name}"] = self.scaling.factors[name]
            tensors[f"weights/{name}"] = weights
        for name, precision in self.precisions.items():
            tensors[f"precision/{name}"] = torch.tensor([precision], dtype=torch.float64)
        if (spread := self.spread) is not None:
            tensors |= {f"basis/{name}": basis for name, basis in spread.basis.items()}
            tensors |= {"directions": spread.directions, "moments": spread.moments, "curvatures": spread.curvatures}
            if spread.inverse is not None:
                tensors["inverse"] = spread.inverse
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @staticmethod
    def of(tensors: Mapping[str, torch.Tensor]) -> Head:
        """Return the head that ``tensors`` wrote.

        Raises:
            HeadError: a tensor is missing or does not fit the others.
        """
        tensors = {name: each.clone() for name, each in tensors.items()}  # as aligned as when they were made

        def under(prefix: str) -> dict[str, torch.Tensor]:
            return {name.partition("/")[2]: tensors[name] for name in sorted(tensors) if name.startswith(f"{prefix}/")}

        try:
            likelihood, classes = tensors["kind"].tolist()
            factor = tensors["inverse_temperature"].tolist()
            weights, means, factors = under("weights"), under("mean"), under("factor")
            spread = None
            if "moments" in tensors:
                spread = Spread(
                    under("basis"),
                    tensors["directions"],
                    tensors.get("inverse"),
                    tensors["moments"],
                    tensors["curvatures"],
                )
            head = Head(
                _LIKELIHOODS[likelihood],
                Scaling(means, factors),
                weights,
                tensors["constant"],
                classes,
                {name: float(each) for name, each in under("precision").items()},
                factor[0] if factor else None,
                spread,
            )
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise HeadError(f"these tensors are no head: {type(error).__name__} at {error}") from None
        shapes = {name: (len(each), 1 if head.conditional else classes) for name, each in means.items()}
        fits = {name: tuple(each.shape) for name, each in weights.items()} == shapes
        fits &= {name: (len(each),) for name, each in factors.items()} == {
            name: wide[:1] for name, wide in shapes.items()
        }
        if not fits or set(head.precisions) != {*shapes, *([] if head.conditional else ["constant"])}:
            raise HeadError(f"these tensors are no head: those of the blocks {sorted(shapes)} do not fit each other")
        return head

    def residual(self, rows: Rows) -> torch.Tensor:
        """Return (rows, classes) the targets less the head's probabilities, 0 at impossible classes."""
        probs = probs_of(self.likelihood, self._logits(rows.blocks, rows.offset, rows.class_mask), rows.class_mask)
        return (rows.targets - probs) * rows.class_mask

    def _logits(
        self, blocks: Mapping[str, torch.Tensor], offset: torch.Tensor | None, mask: torch.Tensor
    ) -> torch.Tensor:
        total = torch.zeros(mask.shape, dtype=torch.float64)
        if not self.conditional:
            total = total + self.constant
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
        if (first.ndim == 3) != self.conditional:
            raise HeadError(
                f"the head was fitted on {'options' if self.conditional else 'rows'}, got {tuple(first.shape)}"
            )
        classes = first.shape[1] if self.conditional else self.classes
        mask = torch.ones(len(first), classes, dtype=torch.bool) if class_mask is None else class_mask.detach().cpu()
        if mask.shape != (len(first), classes) or mask.dtype != torch.bool:
            raise HeadError(f"class_mask must be {(len(first), classes)} bool, got {tuple(mask.shape)} {mask.dtype}")
        if (offset is None) != (self.inverse_temperature is None):
            raise HeadError("give an offset to a head that was fitted with one, and to no other")
        return blocks, checked_offset(offset, mask), mask
