"""Ship, ship with review, or do not ship: a rule over the rows, with their noise.

An artifact is not to be shipped where its rows rule out, at 95 %, what shipping takes:

1. it is better than always answering the most frequent label;
2. its review rule accepts something;
3. no more than the target risk of what it accepts is wrong.

It can do without review where at most the target risk of *all* rows is wrong, beyond noise. Everything else is review.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from laplora.metrics.noise import calibrated_ece, lowest_coverage, share_interval
from laplora.report.records import Report

Kind = Literal["ship", "review", "stop"]
#: "open": the rows can neither show it nor rule it out.
Outcome = Literal["yes", "open", "no"]

#: Of what is called more than noise: 2.5 % on a side, as of a 95 % interval.
_CHANCE = 0.025
#: Rows that the calibrated ECE is simulated on, at most: with more, its noise is far below what matters.
_MOST_SIMULATED = 20_000


@dataclass(frozen=True)
class Check:
    """One thing that was promised or is needed, and what the rows say of it.

    Attributes:
        title: what is to hold; measured: what was; expected: what it is compared with.
        outcome: whether it holds.
    """

    title: str
    measured: str
    expected: str
    outcome: Outcome


@dataclass(frozen=True)
class Verdict:
    """The decision, why in one sentence, and what it rests on.

    Attributes:
        title: the decision in a few words; caveats: sentences of what else is to be known.
    """

    kind: Kind
    title: str
    sentence: str
    checks: tuple[Check, ...]
    caveats: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """``count`` of ``rows``, at least one, with its exact 95 % interval."""

    count: int
    rows: int

    @property
    def value(self) -> float:
        """The share, 0 to 1."""
        return self.count / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high, 0 to 1."""
        return share_interval(self.count, self.rows)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{percent(self.value)} ({100 * low:.1f} to {percent(high)})"


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{100 * share:.1f}\u00a0%"


def operating_point(report: Report) -> tuple[Share, Share | None]:
    """Return the share of rows that go to a person, and of the others those that are wrong; None without others."""
    rows = report.rows
    accepted = ~rows.review
    count = int(accepted.sum())
    wrong = int((rows.wrong & accepted).sum())
    return Share(len(rows) - count, len(rows)), Share(wrong, count) if count else None


def judge(report: Report) -> Verdict:
    """Return the verdict on a report's rows."""
    checks, caveats = [], []
    for check, caveat in _checks(report):
        checks.append(check)
        if check.outcome == "no" and caveat:
            caveats.append(caveat)
    kind, sentence = _decision(report)
    return Verdict(kind, _title(kind, report), sentence, tuple(checks), tuple(caveats))


def _title(kind: Kind, report: Report) -> str:
    if kind == "review":
        return f"Ship, with {percent(operating_point(report)[0].value)} reviewed by a person"
    return "Ship" if kind == "ship" else "Do not ship"


def _commonest(report: Report) -> tuple[str, float]:
    label = int(report.rows.labels.bincount(minlength=len(report.labels)).argmax())
    return report.labels[label], float((report.rows.labels == label).double().mean())


def _decision(report: Report) -> tuple[Kind, str]:
    rows, target = report.rows, report.promise.target_risk
    review, accepted = operating_point(report)
    right, wrong = Share(int((~rows.wrong).sum()), len(rows)), Share(int(rows.wrong.sum()), len(rows))
    label, share = _commonest(report)
    if right.interval[0] <= share:
        return "stop", (
            f"{right} of the answers are right and always answering “{label}” is right for {percent(share)}, so "
            f"{len(rows)} rows do not show that the model has learnt the task."
        )
    if accepted is None:
        return "stop", (
            "A person would have to look at every answer: the review rule finds none sure enough for an error rate of "
            f"{percent(target)}."
        )
    if accepted.interval[0] > target:
        return "stop", (
            f"Of the answers that nobody would look at {accepted} are wrong, more than the {percent(target)} asked for "
            "and more than noise explains."
        )
    if wrong.interval[1] <= target:
        rest = f", and the review rule still sends {percent(review.value)} of them to a person" if review.count else ""
        return "ship", (
            f"{wrong} of all {len(rows)} answers are wrong, within the {percent(target)} asked for even with noise"
            f"{rest}."
        )
    if accepted.interval[1] <= target:
        sure = f"within the {percent(target)} asked for even with noise"
    elif accepted.value <= target:
        sure = f"within the {percent(target)} asked for, but {accepted.rows} rows are too few to rule out more"
    else:
        sure = f"above the {percent(target)} asked for by no more than noise in {accepted.rows} rows explains"
    return "review", (
        f"A person looks at {percent(review.value)} of the answers, and of the others {accepted} are wrong: {sure}."
    )


def _checks(report: Report) -> Iterator[tuple[Check, str]]:
    """Yield each check, with the sentence that is to be said where it fails; "" where the verdict says it."""
    rows, promise, served = report.rows, report.promise, report.methods[report.served]
    _, accepted = operating_point(report)
    right, (label, share) = Share(int((~rows.wrong).sum()), len(rows)), _commonest(report)
    low, high = right.interval
    outcome: Outcome = "yes" if low > share else "no" if high < share else "open"
    yield Check(f"Better than always “{label}”", f"{right} right", f"more than {percent(share)}", outcome), ""
    if accepted is not None:
        low, high = accepted.interval
        outcome = "yes" if high <= promise.target_risk else "no" if low > promise.target_risk else "open"
        measured = f"{accepted}, {accepted.count} of {accepted.rows}"
        yield Check("Mistakes among the accepted", measured, f"at most {percent(promise.target_risk)}", outcome), ""
    # Evenly spaced, where there are very many.
    confidence = rows.confidence[:: -(-len(rows) // _MOST_SIMULATED)].contiguous()
    limit = calibrated_ece(confidence, chance=_CHANCE).limit
    yield (
        Check(
            "Calibrated (ECE)", f"{served['ece']:.3f}", f"at most {limit:.3f} by chance", _within(served["ece"], limit)
        ),
        "Its probabilities are off by more than chance: use its decisions, do not read a probability as a frequency.",
    )
    if (gain := report.gain) is not None:
        difference, low, high = gain
        yield (
            Check(
                "NLL below temperature scaling",
                f"{difference:+.3f} nats ({low:+.3f} to {high:+.3f})",
                "below 0",
                "yes" if high < 0 else "no" if low > 0 else "open",
            ),
            "Temperature scaling, which costs less, has better probabilities on these rows.",
        )
    if "sets" in served:
        coverage = served["sets"]["coverage"]
        least = lowest_coverage(promise.coverage, len(rows), promise.calibration_rows, chance=_CHANCE)
        yield (
            Check(
                "Label sets hold the right label",
                percent(coverage),
                f"at least {percent(least)}",
                _within(least, coverage),
            ),
            f"Its label sets hold the right label less often than the {percent(promise.coverage)} that they promise.",
        )
    if report.unfamiliar is not None and promise.false_alarms is not None:
        level = 1 - promise.false_alarms
        most = 1 - lowest_coverage(level, len(rows), promise.calibration_rows, chance=_CHANCE)
        yield (
            Check(
                "Rows are like the training rows",
                f"{percent(report.unfamiliar)} unfamiliar",
                f"at most {percent(most)}",
                _within(report.unfamiliar, most),
            ),
            "More rows are unlike the training rows than chance explains: the figures are of other rows than promised.",
        )


def _within(value: float, limit: float) -> Outcome:
    return "yes" if value <= limit + 1e-9 else "no"
