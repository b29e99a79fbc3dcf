"""Figures of the active artifact and its shadow on the same rows, and whether the shadow is better for certain.

Labels come for the rows that somebody looked at, often more of those that were sent to review. Figures of labels are
therefore means over two strata, what the active artifact accepted and what it did not, weighted by the strata's shares
of all rows. Labels of a stratum have to be of its rows at random. Every bound holds at all looks at once
(``laplora.metrics.anytime``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laplora.metrics.anytime import lowest_mean
from service.feedback.records import StoredPrediction
from service.shadow.seen import Seen, alike
from service.shadow.terms import Better, Terms, Verdict

#: Pairs of labels that are shown.
_SHOWN_PAIRS = 20
#: Losses count up to this, that of a probability of 5 %: what is not bounded has no bound.
MOST_LOSS = 3.0


@dataclass(frozen=True)
class Labelled:
    """Labelled rows that one of the two answered.

    Attributes:
        accuracy: share of right answers; nll: mean negative log-likelihood, nats, each counted up to ``MOST_LOSS``.
        accepted: how many it accepted; accepted_risk: the error rate of these. None of none.
    """

    accuracy: float | None
    nll: float | None
    accepted: int
    accepted_risk: float | None


@dataclass(frozen=True)
class Difference:
    """How much better the shadow is, above 0 if it is: ``value`` is measured, ``low`` the least for certain."""

    figure: Better
    value: float | None
    low: float


@dataclass(frozen=True)
class Compared:
    """Both at one moment.

    Attributes:
        labelled: different rows of both with a label; served, shadow: their figures.
        differences: of every figure, at the terms' confidence.
        verdict, reason: of the rule, and in words.
    """

    seen: Seen
    labelled: int
    served: Labelled
    shadow: Labelled
    differences: Sequence[Difference]
    verdict: Verdict
    reason: str

    @property
    def pairs(self) -> Sequence[tuple[tuple[str, str], int]]:
        """The most frequent pairs of labels that differ, with their rows."""
        return self.seen.labels.most_common(_SHOWN_PAIRS)


def compared(terms: Terms, seen: Seen, pairs: Sequence[tuple[StoredPrediction, int]], *, whole: bool) -> Compared:
    """Return how a shadow compares.

    Args:
        pairs: labelled answers of the shadow with the bits of their right labels; of one text, the first counts.
        whole: whether none of them was forgotten yet; from then on no bound would hold at all looks.
    """
    chance = 1 - terms.confidence
    different = {
        tuple(alike(one.served.probabilities()[1]) + alike(one.probabilities()[1])): (one, one.served, right)
        for one, right in reversed(pairs)
        if one.served is not None
    }
    rows = [(_outcome(one, right), _outcome(served, right, one)) for one, served, right in different.values()]
    mine, theirs = ([row[i] for row in rows] for i in (0, 1))
    accepts = sum(seen.accepted[True, each] for each in (True, False))
    shares = _shares(accepts, seen.rows)
    strata = torch.tensor([their.accepted for their in theirs], dtype=torch.bool)

    def bounded(name: Better, values: Sequence[float], most: float) -> Difference:
        return Difference(name, *_stratified(torch.tensor(values, dtype=torch.float64), strata, shares, most, chance))

    decisions = torch.tensor(list(seen.decisions), dtype=torch.float64) - 1
    share = float(decisions.mean()) if len(decisions) else None
    differences = (
        Difference("accepted_share", share, lowest_mean([decisions], [1.0], low=-1.0, high=1.0, chance=chance)),
        bounded("accuracy", [b.wrong - a.wrong for a, b in zip(mine, theirs, strict=True)], 1.0),
        bounded("nll", [b.loss - a.loss for a, b in zip(mine, theirs, strict=True)], MOST_LOSS),
    )
    excess = bounded("accuracy", [one.accepted * (one.wrong - one.target_risk) for one in mine], 1.0)
    accepted = [one for one in mine if one.accepted]
    # As many rows without a mistake would say that the stated rate is kept (rule of three).
    enough = sum(one.target_risk for one in accepted) >= 3
    risk = None if not enough or excess.value is None else excess.value <= 0
    verdict, reason = _verdict(terms, differences, risk, whole)
    return Compared(seen, len(rows), _labelled(theirs), _labelled(mine), differences, verdict, reason)


@dataclass(frozen=True)
class _Outcome:
    """One labelled answer: whether (of several labels, what share) it is wrong, its loss, and its decision."""

    wrong: float
    loss: float
    accepted: bool
    target_risk: float


def _outcome(one: StoredPrediction, right: int, shadow: StoredPrediction | None = None) -> _Outcome:
    """Return how an answer did; ``right`` has the bits of ``shadow``'s labels, of its own where it is None."""
    names = {label for k, label in enumerate((shadow or one).labels) if right >> k & 1}
    truth = torch.tensor([label in names for label in one.labels], dtype=torch.float64)
    probs = torch.tensor(one.probabilities()[1], dtype=torch.float64)
    if one.several:
        wrong = float(((probs > 0.5) != truth.bool()).double().mean())
        loss = float(-torch.where(truth.bool(), probs, 1 - probs).log().clamp(min=-MOST_LOSS).mean())
    else:
        answered = one.label if one.label >= 0 else int(probs.argmax())
        wrong = float(1 - truth[answered])
        loss = float(-(truth @ probs).log().clamp(min=-MOST_LOSS))
    return _Outcome(wrong, loss, one.accepted, one.target_risk)


def _shares(accepts: int, rows: int) -> tuple[float, float, float]:
    """Return the share of accepted rows, and its lowest and highest value: 3 standard errors (Agresti and Coull)."""
    centre = (accepts + 4.5) / (rows + 9)
    half = 3 * (centre * (1 - centre) / (rows + 9)) ** 0.5
    return accepts / rows if rows else 0.5, max(0.0, centre - half), min(1.0, centre + half)


def _stratified(
    values: torch.Tensor, strata: torch.Tensor, shares: tuple[float, float, float], most: float, chance: float
) -> tuple[float | None, float]:
    """Return the weighted mean of both strata, None where one that has rows has no label, and its lower bound.

    The bound is the lower one of those at the lowest and the highest share: the mean is linear in it.
    """
    both, (share, *ends) = (values[strata], values[~strata]), shares
    weighted = [(weight, part) for weight, part in zip((share, 1 - share), both, strict=True) if weight]
    known = all(len(part) for _, part in weighted)
    mean = sum(weight * float(part.mean()) for weight, part in weighted) if known else None
    return mean, min(lowest_mean(both, (at, 1 - at), low=-most, high=most, chance=chance) for at in ends)


def _labelled(rows: Sequence[_Outcome]) -> Labelled:
    accepted = [row.wrong for row in rows if row.accepted]
    return Labelled(
        accuracy=1 - sum(row.wrong for row in rows) / len(rows) if rows else None,
        nll=sum(row.loss for row in rows) / len(rows) if rows else None,
        accepted=len(accepted),
        accepted_risk=sum(accepted) / len(accepted) if accepted else None,
    )


def _verdict(terms: Terms, differences: Sequence[Difference], risk: bool | None, whole: bool) -> tuple[Verdict, str]:
    """Return whether the rule is fulfilled; ``risk``: whether accepted rows err as stated, None of too few."""
    if not terms.better:
        return "not_asked", "nothing was stated that activates it"
    asked = [one for one in differences if one.figure in terms.better]
    said = "; ".join(f"the gain in {one.figure} is {one.low:+.3f} at least" for one in asked)
    said += f" (above 0: better, with {100 * terms.confidence:g} % probability at all looks together)"
    if not whole:
        return "undecided", f"labels did not tell them apart before feedback_window or feedback_keep_s was over; {said}"
    if risk is None:
        return "waiting", f"too few of its accepted answers have a label to see whether they err as stated; {said}"
    if not risk:
        return "waiting", f"its accepted answers err more often than stated; {said}"
    return ("better" if all(one.low > 0 for one in asked) else "waiting"), said
