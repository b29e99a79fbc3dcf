"""SWAG: a Gaussian over the weights from snapshots of the end of a training (Maddox et al., arXiv 1902.02476).

As there: the diagonal is that of the snapshots' second moments, the low-rank part of their deviations from the running
mean (section 3.2 and algorithm 1), and a sample has half of its variance from each (their equation 1). Otherwise than
there: the snapshots are taken while the learning rate falls to 0, as in the training that is compared, not at a high
constant rate, which makes the Gaussian narrower; and a member is one of 10 samples, not of 30.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

#: Snapshots, evenly in the last quarter of the steps.
SNAPSHOTS = 20

Weights = Mapping[str, torch.Tensor]


def snapshot_steps(steps: int) -> frozenset[int]:
    """Return the steps, from 0, after which a snapshot is taken."""
    return frozenset(steps - 1 - (steps // 4) * i // SNAPSHOTS for i in range(SNAPSHOTS))


@dataclass
class Moments:
    """Running moments of the weights, and every snapshot's deviation from the mean at its time."""

    mean: dict[str, torch.Tensor] = field(default_factory=dict)
    square: dict[str, torch.Tensor] = field(default_factory=dict)
    deviations: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def add(self, weights: Weights) -> None:
        """Take one snapshot in."""
        count = len(self.deviations) + 1
        for name, weight in weights.items():
            for kept, value in ((self.mean, weight), (self.square, weight**2)):
                before = kept.get(name, torch.zeros_like(weight))
                kept[name] = before + (value - before) / count
        self.deviations.append({name: weight - self.mean[name] for name, weight in weights.items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return them as named tensors: ``mean/``, ``square/`` and ``deviation/NUMBER/`` before each block's name."""
        found = {f"{part}/{n}": w for part in ("mean", "square") for n, w in getattr(self, part).items()}
        deviations = {
            f"deviation/{i}/{n}": w.bfloat16() for i, one in enumerate(self.deviations) for n, w in one.items()
        }
        return found | deviations


def swag_sample(moments: Weights, names: Sequence[str], draw: torch.Generator) -> dict[str, torch.Tensor]:
    """Return weights by block name from SWAG's Gaussian: half of the variance is diagonal, half of low rank.

    Args:
        moments: as ``Moments.tensors``.
    """
    count = len({name.split("/")[1] for name in moments if name.startswith("deviation/")})
    mix = torch.randn(count, generator=draw)
    weights = {}
    for name in names:
        mean = moments[f"mean/{name}"]
        variance = (moments[f"square/{name}"] - mean.square()).clamp_min(0)
        diagonal = variance.sqrt() * torch.randn(mean.shape, generator=draw)
        deviations = torch.stack([moments[f"deviation/{i}/{name}"].float() for i in range(count)])
        low_rank = torch.einsum("k,k...->...", mix, deviations) / math.sqrt(max(1, count - 1))
        weights[name] = mean + (diagonal + low_rank) / math.sqrt(2)
    return weights
