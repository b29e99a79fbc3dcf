"""The rows behind the figures: who is taken for whom, labels and slices with their sizes, and the rows to look at."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from laplora.linearised import entropy
from laplora.report.records import Report, Rows
from laplora.report.verdict import Share

#: A matrix of more labels fits no page: the commonest confusions are listed instead.
MOST_MATRIX_LABELS = 12
#: Most lines of a table.
MOST_LINES = 40
#: Rows of each list of rows.
LISTED_ROWS = 12
#: Most characters of a row's text.
MOST_CHARACTERS = 280


@dataclass(frozen=True)
class Group:
    """Some of the rows: those of a label, or of a slice.

    Attributes:
        size: how many; right, accepted_wrong: of all of them, and of those that no person looks at, None without any.
        confidence: mean; review: share that goes to a person.
    """

    name: str
    size: int
    right: Share
    confidence: float
    review: float
    accepted_wrong: Share | None


@dataclass(frozen=True)
class LabelGroup:
    """The rows whose right answer is one label; ``precision`` is None where it is never answered."""

    group: Group
    precision: Share | None


@dataclass(frozen=True)
class ListedRow:
    """One row to look at; ``text`` is None where texts are left out."""

    reference: str
    right: str
    answer: str
    confidence: float
    map_confidence: float | None
    score: float
    review: bool
    text: str | None


@dataclass(frozen=True)
class Confusion:
    """So many rows of one label that were answered with another; ``share`` of the label's rows."""

    right: str
    answer: str
    count: int
    share: float


def confusion_matrix(report: Report) -> list[list[int]] | None:
    """Return how often each label, in order, was answered with each; None where there are too many labels."""
    count = len(report.labels)
    if count > MOST_MATRIX_LABELS:
        return None
    pairs = report.rows.right * count + report.rows.predicted
    matrix: list[list[int]] = torch.bincount(pairs, minlength=count * count).view(count, count).tolist()
    return matrix


def commonest_confusions(report: Report) -> list[Confusion]:
    """Return the mistakes that occur most, the most frequent first."""
    rows, count = report.rows, len(report.labels)
    sizes = rows.right.bincount(minlength=count)
    pairs, counts = torch.unique((rows.right * count + rows.predicted)[rows.wrong], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:MOST_LINES].tolist()
    found = []
    for i in order:
        right, answer = divmod(int(pairs[i]), count)
        found.append(
            Confusion(
                report.labels[right], report.labels[answer], int(counts[i]), float(counts[i]) / float(sizes[right])
            )
        )
    return found


def label_groups(report: Report) -> list[LabelGroup]:
    """Return the labels that occur, in order; of more than a page holds, those with the most mistakes."""
    rows = report.rows
    groups = []
    for index, name in enumerate(report.labels):
        mask, answered = rows.right == index, rows.predicted == index
        if mask.any():
            hits, count = int((mask & answered).sum()), int(answered.sum())
            groups.append(LabelGroup(_group(rows, name, mask), Share(hits, count) if count else None))
    return [groups[i] for i in _most_mistaken([one.group for one in groups])]


def slice_groups(report: Report) -> Iterator[tuple[str, list[Group]]]:
    """Yield each slicing's title with its groups, in its order; those of more than a page holds as of labels."""
    for one in report.rows.slices:
        masks = [(name, one.index == place) for place, name in enumerate(one.names)]
        groups = [_group(report.rows, shortened(name), mask) for name, mask in masks if mask.any()]
        yield one.title, [groups[i] for i in _most_mistaken(groups)]


def _most_mistaken(groups: Sequence[Group]) -> list[int]:
    """Return the places of as many groups as fit a page, in order: all, or those with the most mistakes."""
    places = range(len(groups))
    if len(groups) <= MOST_LINES:
        return list(places)
    mistakes = [group.size - group.right.count for group in groups]
    return sorted(sorted(places, key=lambda i: -mistakes[i])[:MOST_LINES])


def _group(rows: Rows, name: str, mask: torch.Tensor) -> Group:
    accepted = mask & ~rows.review

    def share(hits: torch.Tensor, among: torch.Tensor) -> Share:
        return Share.of(hits[among], None if rows.groups is None else rows.groups[among])

    return Group(
        name=name,
        size=int(mask.sum()),
        right=share(~rows.wrong, mask),
        confidence=float(rows.confidence[mask].mean()),
        review=float(rows.review[mask].double().mean()),
        accepted_wrong=share(rows.wrong, accepted) if bool(accepted.any()) else None,
    )


def worst_rows(report: Report) -> list[ListedRow]:
    """Return the wrong answers that were the surest, the surest first."""
    return _listed(report, report.rows.confidence.masked_fill(~report.rows.wrong, -1.0), int(report.rows.wrong.sum()))


def suspected_rows(report: Report) -> list[dict[str, Any]] | None:
    """Return the labels to look at, at most ``LISTED_ROWS`` of each kind; None where nobody looked."""
    if report.suspects is None:
        return None
    counts, kept = Counter[str](), list[dict[str, Any]]()
    for row in report.suspects:
        counts[kind := row["found"].split(",")[0].split()[0]] += 1
        if counts[kind] <= LISTED_ROWS:
            kept.append({**row, "id": shortened(row["id"]), "text": row["text"] and shortened(row["text"])})
    return kept


def most_uncertain_rows(report: Report) -> list[ListedRow]:
    """Return the rows whose probabilities have the largest entropy, the largest first."""
    return _listed(report, entropy(report.rows.probs), len(report.rows))


def _listed(report: Report, order: torch.Tensor, most: int) -> list[ListedRow]:
    rows = report.rows
    places = order.argsort(descending=True, stable=True)[: min(most, LISTED_ROWS)].tolist()
    return [
        ListedRow(
            reference=shortened(rows.references[i]),
            right=report.labels[int(rows.right[i])],
            answer=report.labels[int(rows.predicted[i])],
            confidence=float(rows.confidence[i]),
            map_confidence=None if rows.map_probs is None else float(rows.map_probs[i].max()),
            score=float(rows.score[i]),
            review=bool(rows.review[i]),
            text=None if rows.texts is None else shortened(rows.texts[i]),
        )
        for i in places
    ]


def shortened(text: str) -> str:
    """Return text as one line of at most ``MOST_CHARACTERS``, without control and formatting characters.

    Those could change the order in which the page around them is read (bidirectional overrides).
    """
    # Ten times the length is looked at, so that a text of megabytes costs nothing.
    kept = (" " if c.isspace() else c for c in text[: 10 * MOST_CHARACTERS] if c.isspace() or _is_shown(c))
    line = " ".join("".join(kept).split())
    return line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 1].rstrip() + "…"


def _is_shown(character: str) -> bool:
    return not unicodedata.category(character).startswith("C") or character == "\u200d"  # joins emoji and some scripts
