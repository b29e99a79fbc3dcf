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
from service.shadow.seen import Seen
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
        labelled: rows of both with a label; served, shadow: their figures.
        differences: of every figure, at the terms' confidence or 0.95.
        too_risky: whether the shadow's accepted answers err more often than stated, for certain.
        verdict, reason: of the rule, and in words.
    """

    seen: Seen
    labelled: int
    served: Labelled
    shadow: Labelled
    differences: Sequence[Difference]
    too_risky: bool
    verdict: Verdict
    reason: str

    @property
    def pairs(self) -> Sequence[tuple[tuple[str, str], int]]:
        """The most frequent pairs of labels that differ, with their rows."""
        return self.seen.labels.most_common(_SHOWN_PAIRS)


def compared(terms: Terms, seen: Seen, pairs: Sequence[tuple[StoredPrediction, int]], most: int) -> Compared:
    """Return how a shadow compares.

    Args:
        pairs: labelled answers of the shadow with the bits of their right labels, the first labelled first.
        most: as many can be known at once; with these the first ones go, and the rule on labels ends.
    """
    chance = 1 - terms.confidence
    rows = [(_outcome(one, right), _outcome(one.served, right, one)) for one, right in pairs if one.served is not None]
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
    verdict, reason = _verdict(terms, differences, excess.low > 0, full=len(rows) >= most)
    return Compared(seen, len(rows), _labelled(theirs), _labelled(mine), differences, excess.low > 0, verdict, reason)


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


def _verdict(terms: Terms, differences: Sequence[Difference], too_risky: bool, *, full: bool) -> tuple[Verdict, str]:
    if not terms.better:
        return "not_asked", "nothing was stated that activates it"
    asked = [one for one in differences if one.figure in terms.better]
    said = "; ".join(f"the gain in {one.figure} is {one.low:+.3f} at least" for one in asked)
    said += f" (above 0: better, with {100 * terms.confidence:g} % probability at all looks together)"
    if too_risky:
        return "waiting", f"its accepted answers err more often than stated; {said}"
    if full and set(terms.better) != {"accepted_share"}:
        return "undecided", f"feedback_window labels did not tell them apart, and more are not kept; {said}"
    return ("better" if all(one.low > 0 for one in asked) else "waiting"), said
