"""Labelled rows as the solver takes them: blocks of features, targets, an offset, the possible classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from laplora.head.errors import HeadError, check
from laplora.head.likelihood import Likelihood

Features = torch.Tensor | Mapping[str, torch.Tensor]
Given = torch.Tensor | None


@dataclass(frozen=True)
class Rows:
    """Labelled rows on the CPU.

    Blocks are (rows, width), or (rows, options, width) for a conditional logit, float32 or float64; targets and offset
    (rows, classes) float64, 0 at impossible classes; class_mask (rows, classes) bool; groups (rows,) int64.
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
        ends = (self, other)
        return Rows(
            {name: torch.cat([block, other.blocks[name].to(block.dtype)]) for name, block in self.blocks.items()},
            torch.cat([each.targets for each in ends]),
            None if self.offset is None else torch.cat([each.offset for each in ends if each.offset is not None]),
            torch.cat([each.class_mask for each in ends]),
            torch.cat([each.groups for each in ends]),
            self.likelihood,
        )


def named_blocks(features: Features) -> dict[str, torch.Tensor]:
    """Return blocks sorted by name on the CPU, float32 or float64; HeadError for none, NaN, or other rows or kinds."""
    given = dict(features) if isinstance(features, Mapping) else {"features": features}
    if not given or "constant" in given:
        raise HeadError(f"features must be at least one block, none called 'constant', got {sorted(given)}")
    blocks = {}
    for name, block in ((name, torch.as_tensor(given[name])) for name in sorted(given)):
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
    offset: Given = None,
    class_mask: Given = None,
    groups: Given = None,
    likelihood: Likelihood = "categorical",
    classes: int | None = None,
    labelled: bool = True,
) -> Rows:
    """Return rows after every check; without ``labelled`` the labels say nothing but how many classes there are.

    Raises:
        HeadError: shapes that do not fit, labels that are no possible class, NaN or infinity.
    """
    if likelihood not in ("categorical", "bernoulli"):
        raise HeadError(f"likelihood must be 'categorical' or 'bernoulli', got {likelihood!r}")
    blocks = named_blocks(features)
    first, labels = next(iter(blocks.values())), torch.as_tensor(labels).detach().cpu()
    rows = len(first)
    if labels.ndim not in (1, 2) or len(labels) != rows:
        raise HeadError(f"{rows} rows of features need as many labels, got {tuple(labels.shape)}")
    if labels.ndim == 1 and (labels.is_floating_point() or likelihood == "bernoulli"):
        raise HeadError("labels of one number a row must be int64 and categorical; else give (rows, classes)")
    known = [first.shape[1]] if first.ndim == 3 else []
    known += [each.shape[1] for each in (labels, offset, class_mask) if each is not None and each.ndim == 2]
    known += [classes] if classes is not None else []
    if len(set(known)) > 1:
        raise HeadError(f"features, labels, offset and class_mask have different numbers of classes: {known}")
    width = known[0] if known else max(2, int(labels.max()) + 1 if rows else 0)
    mask = torch.ones(rows, width, dtype=torch.bool) if class_mask is None else torch.as_tensor(class_mask).cpu()
    check("class_mask", mask, (rows, width), torch.bool)
    if not bool(mask.any(1).all()):
        raise HeadError("class_mask leaves a row without a possible class")
    number = torch.arange(rows) if groups is None else torch.as_tensor(groups).cpu()
    check("groups", number, (rows,), torch.int64)
    targets = _targets(labels, mask, likelihood) if labelled else labels
    if offset is not None:
        offset = torch.as_tensor(offset).detach().to("cpu", torch.float64)
        check("offset", offset, tuple(mask.shape), torch.float64)
        offset = offset.masked_fill(~mask, 0)
        if not bool(offset.isfinite().all()):
            raise HeadError("offset has NaN or infinity at a possible class: log probabilities must be finite")
    return Rows(blocks, targets, offset, mask, number, likelihood)


def _targets(labels: torch.Tensor, mask: torch.Tensor, likelihood: Likelihood) -> torch.Tensor:
    if labels.ndim == 1:
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < mask.shape[1]:
            raise HeadError(f"labels must be from 0 to {mask.shape[1] - 1}, got {labels.min()} to {labels.max()}")
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
    if bool(((sums - 1).abs() > 1e-4).any()):
        raise HeadError("probabilities of a row's classes must sum to 1")
    return targets / sums
