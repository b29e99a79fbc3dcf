"""Ship, ship with review, too few rows to say, or do not ship: a rule over the rows, with their noise.

All intervals are at 95 %, and hold the noise of these rows alone, or of their groups. The first that applies is the
verdict:

1. Do not ship: the rows do not show skill. They show it where the accuracy is above that of always answering the most
   frequent label, or where the NLL is below that of the labels' shares. Accuracy alone is a hard test where labels are
   very unequal.
2. Do not ship: the review rule accepts nothing.
3. Do not ship: the error rate of what it accepts is above the target.
4. Too few rows to say: the interval of that error rate reaches above the target. So it is where an input counts as
   several rows, which are not independent.
5. Ship: the error rate of all rows is at most the target, even at the upper end of its interval.
6. Ship with review.

With costs, 3 to 6 compare the mean cost of an input with that of a person's look, in place of error rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from laplora.decisions.review import accept_threshold
from laplora.linearised import cross_entropy, targets_of
from laplora.metrics.groups import mean_and_error
from laplora.metrics.noise import calibrated_ece, effective_rows, lowest_coverage, share_interval
from laplora.metrics.scores import ece, row_nll
from laplora.report.names import as_sentence
from laplora.report.records import Report

Kind = Literal["ship", "review", "open", "stop"]
#: "yes": the rows show it. "open": they can neither show it nor rule it out. "unrejected": they do not rule it out,
#: which is all that this check can find. "no": they rule it out, or do not show what has to be shown.
Outcome = Literal["yes", "open", "unrejected", "no"]

#: The chance below which a difference is more than noise: 2.5 % on a side, as of a 95 % interval.
_CHANCE = 0.025
_NORMAL = 1.96
#: Rows that the calibrated ECE is simulated on, at most: with more, its noise is far below what matters.
_MOST_SIMULATED = 20_000


@dataclass(frozen=True)
class Check:
    """One thing that was promised or is needed, and what the rows say of it.

    Attributes:
        title: of the check; measured: its figure; expected: what the figure is compared with.
        outcome: whether it holds; decides: whether the verdict goes by it.
    """

    title: str
    measured: str
    expected: str
    outcome: Outcome
    decides: bool = False


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
    """``count`` of ``rows``, at least one, with its exact 95 % interval.

    ``independent``: rows that tell as much, where rows are of groups (``effective_rows``); None: all of them.
    """

    count: int
    rows: int
    independent: float | None = None

    @classmethod
    def of(cls, hits: torch.Tensor, groups: torch.Tensor | None) -> Share:
        """Return the share of (rows,) bool ``hits``; groups as of ``Rows``."""
        return cls(int(hits.sum()), len(hits), effective_rows(hits, groups))

    @property
    def value(self) -> float:
        return self.count / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high, 0 to 1."""
        if self.independent is None or self.independent == self.rows:
            return share_interval(self.count, self.rows)
        return share_interval(self.value * self.independent, self.independent)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{percent(self.value)} ({100 * low:.1f} to {percent(high)})"


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{100 * share:.1f}\u00a0%"


def operating_point(report: Report) -> tuple[Share, Share | None]:
    """Return the share of rows that go to a person, and of the others those that are wrong; None without others."""
    rows = report.rows
    accepted, groups = ~rows.review, rows.groups
    left = None if groups is None else groups[accepted]
    return Share.of(rows.review, groups), Share.of(rows.wrong[accepted], left) if bool(accepted.any()) else None


def label_points(report: Report) -> list[tuple[str, float, Share]]:
    """Return each label that some accepted answer has, with its own target risk and the share of wrong ones."""
    rows, found = report.rows, []
    for place, label in enumerate(report.labels):
        mine = ~rows.review & (rows.predicted == place)
        if bool(mine.any()) and report.promise.risks:
            share = Share.of(rows.wrong[mine], None if rows.groups is None else rows.groups[mine])
            found.append((label, report.promise.risks[label], share))
    return found


def _labels_in_words(report: Report) -> str:
    return "; ".join(
        f"{label} {of.rows}, {of.count} wrong (target {percent(r)})" for label, r, of in label_points(report)
    )


def judge(report: Report) -> Verdict:
    """Return the verdict on a report's rows."""
    checks, caveats = [], []
    for check, caveat in _checks(report):
        checks.append(check)
        if check.outcome == "no" and caveat:
            caveats.append(caveat)
    kind, sentence = _decision(report)
    if (nothing := _nothing_accepted(report)) and nothing not in sentence:
        caveats.append(nothing)
    if (skill := _skill(report)).shown and not skill.by_accuracy:
        caveats.append(
            f"Its accuracy is not clearly above that of always answering “{skill.label}”, which is a hard test where "
            "labels are unequal. Its NLL shows skill: it is clearly below that of the labels’ shares."
        )
    return Verdict(kind, _title(kind, report), sentence, tuple(checks), tuple(caveats))


def cost_in_words(figures: Mapping[str, Any]) -> str:
    """Return the mean cost of an input, ``Report.cost``, beside that of reviewing all and none."""
    mean, low, high = (f"{value:.4g}" for value in (figures["mean"], *figures["interval"]))
    return (
        f"an input costs {mean} on average (95 % interval {low} to {high}); {figures['all_reviewed']:.4g} if a person "
        f"looks at every one, {figures['none_reviewed']:.4g} if nobody looks at any"
    )


def in_words(report: Report, verdict: Verdict, earlier: str = "") -> str:
    """Return lines of what is accepted and right on a cross-fitted report's rows, and the verdict.

    ``earlier``: a line of the same for another report.
    """
    why = verdict.sentence if verdict.kind == "stop" else rows_needed(report)
    rows, (_, wrong) = report.rows, operating_point(report)
    of_these = f", and {wrong} of these are wrong" if wrong else ": label more rows, or raise --target-risk"
    at, fitted = f"at {report.promise.target}", "heads" if report.costs else "heads and a threshold"
    if report.cost is not None:
        at, why, earlier = "by their costs", "" if wrong else why, f"{cost_in_words(report.cost)}\n{earlier}"
        of_these = of_these if wrong else ""
    if report.promise.risks is not None and wrong:
        why, earlier = "", f"accepted by answered label: {_labels_in_words(report)}\n{earlier}"
    return (
        f"accepted {at}: {Share.of(~rows.review, rows.groups)} of {len(rows)} rows"
        f"{of_these}\n"
        f"{earlier}"
        f"right of all answers: {Share.of(~rows.wrong, rows.groups)}\n"
        f"(each row by {fitted} that do not know it; in parentheses 95 % intervals)\n"
        f"{report.notes[0]}\n"
        + "".join(f"unlike texts: {note}\n" for note in report.notes[1:])
        + f"verdict: {verdict.title}. {why}".rstrip()
        + "\n"
    )


def rows_to_show(target: float, error_rate: float = 0.0) -> int:
    """Return how many rows show, at 95 %, an error rate of at most ``target``, in (0, 1), where this share is wrong."""
    fewest = error_rate * (1 - error_rate) * (_NORMAL / (target - error_rate)) ** 2  # by the narrower normal interval
    rows = max(1, math.floor(math.log(_CHANCE) / math.log1p(-target)), math.floor(fewest))
    while share_interval(math.ceil(error_rate * rows), rows)[1] > target:
        rows += max(1, rows // 10_000)
    return rows


def rows_needed(report: Report) -> str:
    """Return how many rows would show that the target is kept, or would have some accepted; "" where these do.

    A threshold that is fitted anew aims at the target, so more rows do not show it; a lower target may.
    """
    rows, target, (review, accepted) = report.rows, report.promise.target_risk, operating_point(report)
    if accepted is None and (report.costs is not None or report.promise.risks is not None):
        return ""
    if accepted is None:
        for times in (2, 3, 4, 6, 8, 12, 16):
            if accept_threshold(rows.score.repeat(times), rows.wrong.repeat(times), target) is not None:
                return f"With about {times * len(rows):,} rows like these some answers would be accepted."
        return f"With {times * len(rows):,} rows like these none would be accepted either."
    if accepted.interval[1] <= target:
        return ""
    if report.promise.refitted:
        if not _could_show(accepted, target):
            fewest = rows_to_show(target)
            return (
                f"At least {fewest} accepted rows ({_rounded(fewest / (1 - review.value))} in all) could show that "
                f"{percent(target)} is kept, if none were wrong; but the threshold aims at that: try lower ones."
            )
        most = max(n for n in range(accepted.count) if replace(accepted, count=n).interval[1] <= target)
        return (
            f"The threshold aims at {percent(target)}, so the error rate stays near it however many rows there are: "
            f"more rows narrow the interval, and a lower target lowers the rate. Of {accepted.rows} accepted rows at "
            f"most {most} wrong would show that {percent(target)} is kept, and {accepted.count} are."
        )
    if accepted.value >= target:
        return f"No number of rows shows that the target is kept while {accepted.count} of {accepted.rows} are wrong."
    needed = rows_to_show(target, accepted.value) * accepted.rows / (accepted.independent or accepted.rows)
    return (
        f"If mistakes stay as rare as here ({accepted.count} of {accepted.rows}), {_rounded(needed)} accepted rows "
        f"({_rounded(needed / (1 - review.value)).removeprefix('about ')} in all) would show that the target is kept."
    )


def _rounded(rows: float) -> str:
    """Return about how many rows, with two digits."""
    return f"about {int(float(f'{rows:.2g}')):,}" if rows < 1e6 else "more than a million"


def _title(kind: Kind, report: Report) -> str:
    if kind == "review":
        return f"Ship, with {percent(operating_point(report)[0].value)} reviewed by a person"
    if kind == "open" and report.cost is not None:
        return f"Not certain: an input may cost {report.cost['interval'][1]:.4g} (95 % interval)"
    if kind == "open" and report.promise.risks is not None:
        return "Not certain: some error rates by label may be above their targets (95 % intervals)"
    if kind == "open":
        accepted = operating_point(report)[1]
        if accepted and report.promise.refitted and _could_show(accepted, report.promise.target_risk):
            return f"Not certain: the true error rate may be {percent(accepted.interval[1])} (95 % interval)"
        return "Too few rows to say" if report.questions == 1 else "Not shown: its rows are not independent"
    return "Ship" if kind == "ship" else "Do not ship"


def _could_show(accepted: Share, target: float) -> bool:
    """Return whether as many accepted rows without a mistake would show that the target is kept."""
    return replace(accepted, count=0).interval[1] <= target


@dataclass(frozen=True)
class _Skill:
    """The skill: ``accuracy`` beside the ``share`` of the commonest ``label``, and the NLL's ``difference``.

    The difference is the NLL less that of the labels' shares, nats, from ``low`` to ``high``.
    """

    accuracy: Share
    label: str
    share: float
    difference: float
    low: float
    high: float

    @property
    def by_accuracy(self) -> bool:
        return self.accuracy.interval[0] > self.share

    @property
    def shown(self) -> bool:
        return self.by_accuracy or self.high < 0  # of one row there is no interval: NaN


def _skill(report: Report) -> _Skill:
    rows = report.rows
    shares = targets_of(rows.labels, len(report.labels)).mean(0)
    differences = row_nll(rows.probs, rows.labels) - cross_entropy(shares.log().expand_as(rows.probs), rows.labels)
    mean, error = mean_and_error(differences, rows.groups)
    noise, label = _NORMAL * error if len(rows) > 1 else math.nan, int(shares.argmax())
    accuracy = Share.of(~rows.wrong, rows.groups)
    return _Skill(accuracy, report.labels[label], float(shares[label]), mean, mean - noise, mean + noise)


def _decision(report: Report) -> tuple[Kind, str]:
    rows, target = report.rows, report.promise.target_risk
    review, accepted = operating_point(report)
    wrong, skill = Share.of(rows.wrong, rows.groups), _skill(report)
    if not skill.shown:
        return "stop", (
            f"Its accuracy is {skill.accuracy}, always answering “{skill.label}” has {percent(skill.share)}, and its "
            f"NLL is not clearly below that of the labels’ shares: {len(rows)} rows do not show that the model has "
            "learnt the task."
        )
    if accepted is None:
        enough = f"sure enough for an error rate of {percent(target)}"
        enough = enough if report.costs is None else "that is expected to cost at most the look"
        nothing = _nothing_accepted(report) or (
            f"A person would have to look at every answer: the review rule finds none {enough}."
        )
        return "stop", f"{nothing} {rows_needed(report)}".rstrip()
    looks = f"{percent(1 - review.value)} of the answers are accepted, and {accepted} of these are wrong"
    if report.cost is not None:
        low, high = report.cost["interval"]
        kind: Kind = (
            "stop" if low > report.cost["all_reviewed"] else "open" if high > report.cost["all_reviewed"] else "review"
        )
        return kind, f"{looks}; {cost_in_words(report.cost)}."
    if report.promise.risks is not None:
        points = label_points(report)
        above = [label for label, risk, of in points if of.interval[0] > risk]
        unsure = [label for label, risk, of in points if of.interval[1] > risk]
        sentence = f"{looks}. By answered label: {_labels_in_words(report)}"
        if above:
            return "stop", f"{sentence}. That is more than noise explains for: {', '.join(above)}."
        return (
            ("open", f"{sentence}. Intervals reach above the targets of: {', '.join(unsure)}.")
            if unsure
            else ("review", f"{sentence}: within the targets even with noise.")
        )
    if accepted.interval[0] > target:
        return "stop", f"{looks}, more than the {percent(target)} {report.promise.verb} and more than noise explains."
    kept = f"within the {percent(target)} {report.promise.verb} even with noise"
    if accepted.interval[1] > target:
        return "open", (
            f"{looks}. That interval reaches above the {percent(target)} {report.promise.verb}. {rows_needed(report)}"
        )
    if report.questions > 1:
        return "open", (
            f"{looks}. But each input counts as {report.questions} rows, one for each label, and these are not "
            "independent: the interval is too narrow to show anything."
        )
    if wrong.interval[1] <= target:
        rest = f", and the review rule still sends {percent(review.value)} of them to a person" if review.count else ""
        return "ship", f"{wrong} of all {len(rows)} answers are wrong, {kept}{rest}."
    return "review", f"{looks}: {kept}."


def _nothing_accepted(report: Report) -> str:
    said = report.promise.nothing_accepted
    return as_sentence(said).replace(" %", "\u00a0%") if said else ""


def _checks(report: Report) -> Iterator[tuple[Check, str]]:
    """Yield each check, with the sentence that is to be said where it fails; "" where the verdict says it."""
    promise, served = report.promise, report.methods[report.served]
    yield from _deciding(report)
    # Evenly spaced, where there are very many. ECE and limit are of the same rows.
    every = -(-len(report.rows) // _MOST_SIMULATED)
    confidence = report.rows.confidence[::every].contiguous()
    measured = ece(report.rows.probs[::every], report.rows.labels[::every])
    limit = calibrated_ece(confidence, chance=_CHANCE).limit
    yield (
        Check("Calibrated (ECE)", f"{measured:.3f}", f"at most {limit:.3f} by chance", _within(measured, limit)),
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
    inputs = len(report.rows) // report.questions
    if "sets" in served:
        coverage = served["sets"]["coverage"]
        least = lowest_coverage(promise.coverage, inputs, promise.calibration_rows, chance=_CHANCE)
        yield (
            Check(
                "Label sets hold the true label",
                percent(coverage),
                f"{percent(promise.coverage)} promised; at least {percent(least)} with noise",
                _within(least, coverage),
            ),
            f"Its label sets hold the true label less often than the {percent(promise.coverage)} that they promise.",
        )
    if report.unfamiliar is not None and promise.false_alarms is not None:
        level = 1 - promise.false_alarms
        most = 1 - lowest_coverage(level, inputs, promise.calibration_rows, chance=_CHANCE)
        yield (
            Check(
                "Rows are like the training rows",
                f"{percent(report.unfamiliar)} unfamiliar",
                f"at most {percent(promise.false_alarms)} promised; up to {percent(most)} with noise",
                _within(report.unfamiliar, most),
            ),
            "More rows are unlike the training rows than chance explains: the guarantees may not hold for them.",
        )


def _deciding(report: Report) -> Iterator[tuple[Check, str]]:
    """Yield what the verdict goes by."""
    target, (_, accepted), skill = report.promise.target_risk, operating_point(report), _skill(report)
    figures = report.cost
    yield (
        Check(
            f"Skill: accuracy above always “{skill.label}”, or NLL below the labels’ shares",
            f"accuracy {skill.accuracy}; NLL less that of the shares {skill.difference:+.3f} nats "
            f"({skill.low:+.3f} to {skill.high:+.3f})",
            f"accuracy above {percent(skill.share)}, or a difference below 0",
            "yes" if skill.shown else "no",
            decides=True,
        ),
        "",
    )
    if accepted is None:
        yield Check("Answers that nobody has to look at", "none", "some", "no", decides=True), ""
    elif report.promise.risks is not None:
        for label, risk, of in label_points(report):
            low, high = of.interval
            kept: Outcome = "yes" if high <= risk else "no" if low > risk else "open"
            measured = f"{of}, {of.count} of {of.rows}"
            yield (
                Check(f"Mistakes among accepted “{label}”", measured, f"at most {percent(risk)}", kept, decides=True),
                "",
            )
    else:
        low, high = accepted.interval if figures is None else figures["interval"]
        target = target if figures is None else figures["all_reviewed"]
        outcome: Outcome = "yes" if high <= target else "no" if low > target else "open"
        title, measured = "Mistakes among the accepted", f"{accepted}, {accepted.count} of {accepted.rows}"
        expected = f"at most {percent(target)}, {report.promise.verb}"
        if figures is not None:
            title, expected = "Mean cost of an input", f"at most {target:.4g}, a person's look"
            measured = f"{figures['mean']:.4g} ({low:.4g} to {high:.4g})"
        yield Check(title, measured, expected, outcome, decides=True), ""


def _within(value: float, limit: float) -> Outcome:
    return "unrejected" if value <= limit + 1e-9 else "no"
