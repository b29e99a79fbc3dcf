"""How familiar an input is by the states that a head reads: how far it is from the labelled rows.

Distances tell unlike inputs better than a head's leverage or epistemic part, which rank no mistakes either
(docs/lab-notes.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from laplora.experts.base import Blocks, FeatureSource
from laplora.experts.of_head import HeadExpert
from laplora.familiarity.ood_score import fit_ood_score
from laplora.familiarity.percentile import Familiarity
from laplora.head.folds import parted
from laplora.jacobians.states import States


def reads_states(source: FeatureSource) -> bool:
    """Return whether features have states, by which inputs are compared: another model's log probabilities are none."""
    return source != "rescaled"


def compared(blocks: Blocks, class_mask: torch.Tensor) -> States:
    """Return which states of a head's features are compared, of options their means.

    For a base, they are the states after the text without the last layer's, or the last layer's last token; else all.
    """
    names = sorted(blocks.keys() - {"scores"}, key=lambda name: (name.partition(".")[0], len(name), name))
    after = [name for name in names if name.startswith("after.")]
    if any(name.startswith("fields.") for name in names):
        names = after[:-1] or names[-1:]
    states = torch.stack([blocks[name] for name in names], -2)
    if states.ndim == 4:
        states = states.sum(1) / class_mask.sum(1)[:, None, None]
    return States(tuple(range(len(names))), states, torch.zeros(len(states), 1))


def familiarity_of(expert: HeadExpert) -> tuple[Familiarity, ...]:
    """Return how familiar inputs are to an expert's rows, by fold: its rows are compared with those outside it."""
    rows, by_fold = expert.fitted.rows, list[Familiarity]()
    states = compared(rows.blocks, rows.class_mask)
    for rest, held_out in parted(expert.fitted.folds):
        ood_score = fit_ood_score(states.take(rest), torch.zeros_like(rest))
        by_fold.append(Familiarity(ood_score, ood_score.of(states.take(held_out)).sort().values))
    return tuple(by_fold)


def across(folds: Sequence[Familiarity], states: States) -> torch.Tensor:
    """Return (batch,) float64 the familiarity by the rows of all folds, each under the distances that it was ranked by.

    Distances to more rows would be no rank among them: in many directions they depend on the number of rows.
    """
    sizes = [len(fold.reference) for fold in folds]
    counts = [(size + 1) * fold.of(states) - 1 for size, fold in zip(sizes, folds, strict=True)]
    return (1 + torch.stack(counts).sum(0)) / (1 + sum(sizes))
