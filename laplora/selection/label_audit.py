"""Unlikely labels, rows that two labels fit, and near-copies that disagree, by honest answers.

A label is unlikely by confident learning (Northcutt, Jiang and Chuang 2021, arXiv 1911.00068, section 3.1): another one
is likelier, and of the labels that reach the mean probability of their own rows the likeliest is not the row's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from laplora.data.near_copies import near_copies
from laplora.errors import DataError
from laplora.metrics.checks import checked_probs
from laplora.prompts.examples import Example

#: A row is ambiguous if its own label and another one both have at least this probability.
BOTH_LIKELY = 1 / 3


@dataclass(frozen=True)
class LabelAudit:
    """Labelled rows to look at, as places from 0.

    Attributes:
        likelier: (rows,) int64, the most probable label of each row besides its own.
        own, other: (rows,) float64, the probability of a row's label, and of ``likelier``.
        unlikely: rows whose label is unlikely, that of the least probability first.
        ambiguous: others that two labels fit, the most even first.
        copies: groups of rows whose texts are near-copies and whose labels differ.
    """

    likelier: torch.Tensor
    own: torch.Tensor
    other: torch.Tensor
    unlikely: tuple[int, ...]
    ambiguous: tuple[int, ...]
    copies: tuple[tuple[int, ...], ...]

    def to_rows(self, examples: Sequence[Example], labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return what there is to say of each row that is listed, a row once, in the order to look at them.

        ``id``, ``found`` (``unlikely``, ``ambiguous``, or ``copies`` and the number of their group), ``label``,
        ``likelier``, ``probability`` of either, ``text``.
        """
        found = dict.fromkeys(self.unlikely, "unlikely")
        for number, group in enumerate(self.copies, 1):
            for place in group:
                found[place] = f"{found[place]}, copies {number}" if place in found else f"copies {number}"
        for place in self.ambiguous:
            found.setdefault(place, "ambiguous")
        return [
            {
                "id": examples[place].id,
                "found": what,
                "label": labels[examples[place].label],
                "likelier": labels[int(self.likelier[place])],
                "probability": {"label": float(self.own[place]), "likelier": float(self.other[place])},
                "text": text_of(examples[place].fields),
            }
            for place, what in found.items()
        ]


def text_of(fields: Mapping[str, Any]) -> str:
    """Return what a person reads of a row, in a line."""
    return " · ".join(map(str, fields.values()))


def audit_labels(probs: torch.Tensor, labels: torch.Tensor, texts: Sequence[str]) -> LabelAudit:
    """Return which labels of rows to look at.

    Args:
        probs: (rows, classes) of answers that know neither a row's label nor those of its copies.
        labels: (rows,) int64, one a row and certain.
        texts: of the rows.

    Raises:
        DataError: soft labels, or columns that do not fit; NonFiniteError: as of ``checked_probs``.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise DataError("an audit takes rows with one certain label each")
    given, rows = checked_probs(probs, labels)[0], torch.arange(len(labels))
    if len(texts) != len(labels):
        raise DataError(f"texts must have one entry for each of {len(labels)} rows, got {len(texts)}")
    own, others = given[rows, labels], given.index_put((rows, labels), torch.tensor(-1.0, dtype=torch.float64))
    other, likelier = others.max(1)
    sums = torch.zeros(given.shape[1], dtype=torch.float64).index_add(0, labels, own)
    usual = sums / torch.bincount(labels, minlength=given.shape[1])  # NaN of a label without rows, which none reaches
    confident = (given >= usual).index_put((rows, labels), torch.tensor(False))
    best = given.masked_fill(~confident, -1.0).amax(1)  # the row counts as of the likeliest that reaches its usual
    unlikely = confident.any(1) & (other > own) & ~((own >= usual[labels]) & (own >= best))
    ambiguous = ~unlikely & (own >= BOTH_LIKELY) & (other >= BOTH_LIKELY)
    even = (own - other).abs()
    return LabelAudit(likelier, own, other, _first(unlikely, own), _first(ambiguous, even), _copies(texts, labels))


def _first(those: torch.Tensor, order: torch.Tensor) -> tuple[int, ...]:
    places = those.nonzero()[:, 0]
    return tuple(places[order[places].argsort(stable=True)].tolist())


def _copies(texts: Sequence[str], labels: torch.Tensor) -> tuple[tuple[int, ...], ...]:
    groups = defaultdict[int, list[int]](list)
    for place, leader in enumerate(near_copies(texts)[0]):
        groups[leader].append(place)
    return tuple(tuple(some) for some in groups.values() if len(set(labels[some].tolist())) > 1)
