"""Labelled rows as the solver takes them: blocks of features, targets, an offset, the possible classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from laplora.head.errors import HeadError
from laplora.head.likelihood import Likelihood

Features = torch.Tensor | Mapping[str, torch.Tensor]
#: Name of a block that was given without one.
BLOCK = "features"
#: How far the targets of a row may be from a sum of 1.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Rows:
    """Labelled rows on the CPU.

    Attributes:
        blocks: (rows, width) each, or (rows, options, width) for a conditional logit; float32 or float64.
        targets: (rows, classes) float64, 0 at impossible classes.
        offset: (rows, classes) float64, 0 at impossible classes; None: no offset.
        class_mask: (rows, classes) bool.
        groups: (rows,) int64.
    """

    blocks: Mapping[str, torch.Tensor]
    targets: torch.Tensor
    offset: torch.Tensor | None
    class_mask: torch.Tensor
    groups: torch.Tensor
    likelihood: Likelihood

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def conditional(self) -> bool:
        """Whether features are of options: (rows, options, width)."""
        return next(iter(self.blocks.values())).ndim == 3

    def at(self, places: torch.Tensor, features: bool = True) -> Rows:
        """Return these rows alone, copied; without ``features`` they have no block."""
        return Rows(
            {name: block[places] for name, block in self.blocks.items()} if features else {},
            self.targets[places],
            None if self.offset is None else self.offset[places],
            self.class_mask[places],
            self.groups[places],
            self.likelihood,
        )

    def joined(self, other: Rows) -> Rows:
        """Return these rows and then the others, of the same blocks, classes and likelihood."""
        offset = None
        if self.offset is not None and other.offset is not None:
            offset = torch.cat([self.offset, other.offset])
        return Rows(
            {name: torch.cat([block, other.blocks[name].to(block.dtype)]) for name, block in self.blocks.items()},
            torch.cat([self.targets, other.targets]),
            offset,
            torch.cat([self.class_mask, other.class_mask]),
            torch.cat([self.groups, other.groups]),
            self.likelihood,
        )


def named_blocks(features: Features) -> dict[str, torch.Tensor]:
    """Return blocks sorted by name on the CPU, float32 or float64.

    Raises:
        HeadError: no block, blocks of different rows or kinds, an empty width, NaN or infinity.
    """
    given = {BLOCK: features} if isinstance(features, torch.Tensor) else dict(features)
    if not given:
        raise HeadError("features have no block: give at least one tensor")
    blocks = {}
    for name, block in sorted(given.items()):
        kept = block.detach().to("cpu", torch.float64 if block.dtype == torch.float64 else torch.float32)
        if kept.ndim not in (2, 3) or not kept.shape[-1]:
            raise HeadError(f"block {name!r} must be (rows, width) or (rows, options, width), got {tuple(kept.shape)}")
        if not all(bool(part.isfinite().all()) for part in torch.split(kept, 8192)):
            raise HeadError(f"block {name!r} has NaN or infinity: leave such rows out, or repair the features")
        blocks[name] = kept
    shapes = {block.shape[:-1] for block in blocks.values()}
    if len(shapes) > 1:
        raise HeadError(f"all blocks must have the same rows and options, got {sorted(map(tuple, shapes))}")
    return blocks


def checked_rows(
    features: Features,
    labels: torch.Tensor,
    *,
    offset: torch.Tensor | None = None,
    class_mask: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
    likelihood: Likelihood = "categorical",
    classes: int | None = None,
) -> Rows:
    """Return labelled rows after every check; ``classes`` where labels alone do not say how many.

    Raises:
        HeadError: shapes that do not fit, labels that are no possible class, NaN or infinity.
    """
    if likelihood not in ("categorical", "bernoulli"):
        raise HeadError(f"likelihood must be 'categorical' or 'bernoulli', got {likelihood!r}")
    blocks = named_blocks(features)
    first = next(iter(blocks.values()))
    rows = len(first)
    labels = labels.detach().cpu()
    if labels.ndim not in (1, 2) or len(labels) != rows:
        raise HeadError(f"{rows} rows of features need as many labels, got {tuple(labels.shape)}")
    if labels.ndim == 1 and (labels.is_floating_point() or likelihood == "bernoulli"):
        raise HeadError("labels of one number a row must be int64 and categorical; else give (rows, classes)")
    width = _classes(first, labels, offset, class_mask, classes)
    mask = torch.ones(rows, width, dtype=torch.bool) if class_mask is None else class_mask.detach().cpu()
    if mask.shape != (rows, width) or mask.dtype != torch.bool:
        raise HeadError(f"class_mask must be ({rows}, {width}) bool, got {tuple(mask.shape)} {mask.dtype}")
    if not bool(mask.any(1).all()):
        raise HeadError("class_mask leaves a row without a possible class")
    number = torch.arange(rows) if groups is None else groups.detach().cpu()
    if number.shape != (rows,) or number.dtype != torch.int64:
        raise HeadError(f"groups must be ({rows},) int64, got {tuple(number.shape)} {number.dtype}")
    targets = _targets(labels, mask, likelihood)
    return Rows(blocks, targets, checked_offset(offset, mask), mask, number, likelihood)


def checked_offset(offset: torch.Tensor | None, class_mask: torch.Tensor) -> torch.Tensor | None:
    """Return the offset as (rows, classes) float64, 0 at impossible classes.

    Raises:
        HeadError: another shape, NaN or infinity at a possible class.
    """
    if offset is None:
        return None
    kept = offset.detach().to("cpu", torch.float64)
    if kept.shape != class_mask.shape:
        raise HeadError(f"offset must be {tuple(class_mask.shape)}, got {tuple(kept.shape)}")
    kept = kept.masked_fill(~class_mask, 0)
    if not bool(kept.isfinite().all()):
        raise HeadError("offset has NaN or infinity at a possible class: log probabilities must be finite")
    return kept


def _classes(
    first: torch.Tensor,
    labels: torch.Tensor,
    offset: torch.Tensor | None,
    class_mask: torch.Tensor | None,
    classes: int | None,
) -> int:
    known = [first.shape[1]] if first.ndim == 3 else []
    known += [each.shape[1] for each in (labels, offset, class_mask) if each is not None and each.ndim == 2]
    known += [classes] if classes is not None else []
    if len(set(known)) > 1:
        raise HeadError(f"features, labels, offset and class_mask have different numbers of classes: {known}")
    width = known[0] if known else max(2, int(labels.max()) + 1 if labels.numel() else 0)
    if labels.ndim == 1 and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < width:
        raise HeadError(f"labels must be from 0 to {width - 1}, got {int(labels.min())} to {int(labels.max())}")
    return width


def _targets(labels: torch.Tensor, mask: torch.Tensor, likelihood: Likelihood) -> torch.Tensor:
    if labels.ndim == 1:
        targets = torch.zeros(mask.shape, dtype=torch.float64).scatter_(1, labels.long()[:, None], 1)
    else:
        targets = labels.double()
    if not bool(((targets >= 0) & (targets <= 1)).all()):
        raise HeadError("labels by class must be from 0 to 1")
    if likelihood == "bernoulli":
        return targets * mask
    if bool((targets.masked_fill(mask, 0) > 0).any()):
        raise HeadError("a label is a class that class_mask makes impossible in its row")
    sums = targets.sum(1, keepdim=True)
    if bool(((sums - 1).abs() > _ROUNDING).any()):
        raise HeadError("probabilities of a row's classes must sum to 1")
    return targets / sums
