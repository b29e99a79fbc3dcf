"""The charts of a report, of a few kinds of marks, without saying how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from laplora.decisions.costs import cheapest
from laplora.errors import ConfigError
from laplora.linearised import targets_of
from laplora.metrics.noise import share_interval
from laplora.report.names import display_name
from laplora.report.records import Report
from laplora.report.verdict import cost_in_words, operating_point, percent

#: The colour of a mark, by what it stands for.
Style = Literal["map", "served", "other", "right", "wrong", "over", "under", "count", "guide", "strong"]
Point = tuple[float, float]

_HISTOGRAM_BINS = 14


@dataclass(frozen=True)
class Axis:
    """One axis from ``low`` to ``high``; ``percent``: its values are shares."""

    title: str
    low: float
    high: float
    percent: bool = False


@dataclass(frozen=True)
class Bar:
    """A rectangle; ``title`` is what it says when it is pointed at."""

    style: Style
    left: float
    right: float
    bottom: float
    top: float
    title: str = ""


@dataclass(frozen=True)
class Line:
    """A line through points."""

    style: Style
    points: Sequence[Point]


@dataclass(frozen=True)
class Whisker:
    """A vertical interval."""

    style: Style
    x: float
    low: float
    high: float
    title: str = ""


@dataclass(frozen=True)
class Dot:
    """One point."""

    style: Style
    x: float
    y: float
    title: str = ""


Mark = Bar | Line | Whisker | Dot


@dataclass(frozen=True)
class Chart:
    """One chart; ``description`` says in words what it shows; ``legend`` names the styles that need it.

    ``note`` is to be read beside it.
    """

    title: str
    description: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    legend: Sequence[tuple[Style, str]] = ()
    height: int = 300
    note: str = ""

    @property
    def lines(self) -> frozenset[Style]:
        """The styles that are drawn as lines, which the legend shows as such."""
        return frozenset(mark.style for mark in self.marks if isinstance(mark, Line))


def reliability_charts(report: Report, method: str, style: Style) -> tuple[Chart, Chart]:
    """Return a reliability diagram, accuracy by confidence, and below it how many rows each bin has."""
    values = report.methods[method]
    used = [one for one in values["reliability"] if one["count"]]
    # Two classes never have a confidence below one half: the axis starts at the first bin in use.
    x = Axis("confidence", min(one["lower"] for one in used), 1.0, percent=True)
    marks: list[Mark] = []
    for one in used:
        accuracy, confidence = one["accuracy"], one["confidence"]
        low, high = share_interval(round(accuracy * one["count"]), one["count"])
        says = (
            f"confidence {percent(confidence)}, accuracy {percent(accuracy)} ({percent(low)} to {percent(high)}), "
            f"{one['count']} rows"
        )
        marks.append(Bar(style, one["lower"], one["upper"], 0, accuracy, says))
        bottom, top = sorted((accuracy, confidence))
        marks.append(Bar("over" if confidence > accuracy else "under", one["lower"], one["upper"], bottom, top, says))
        marks.append(Whisker("strong", (one["lower"] + one["upper"]) / 2, low, high, says))
    marks.append(Line("guide", [(x.low, x.low), (1.0, 1.0)]))
    name = display_name(method)
    over = sum(one["count"] for one in used if one["confidence"] > one["accuracy"])
    total = sum(one["count"] for one in used)
    description = (
        f"Reliability of {name}: ECE {values['ece']:.3f}; {over} of {total} rows are in overconfident bins. "
        "Bars are the accuracy in each bin of confidence, whiskers its 95 % "
        "interval, the dashed line is perfect calibration."
    )
    legend: list[tuple[Style, str]] = [
        (style, "accuracy"),
        ("over", "overconfident"),
        ("under", "underconfident"),
        ("strong", "95 % interval"),
        ("guide", "perfect"),
    ]
    title = f"{name}: ECE {values['ece']:.3f}, NLL {values['nll']:.3f}"
    most = max(one["count"] for one in used)
    counts = [Bar("count", one["lower"], one["upper"], 0, one["count"], f"{one['count']} rows") for one in used]
    return (
        Chart(title, description, x, Axis("accuracy", 0, 1, percent=True), marks, legend),
        Chart("", f"Rows in each bin of confidence of {name}.", x, Axis("rows", 0, most), counts, height=120),
    )


def risk_coverage_chart(report: Report) -> Chart:
    """Return the error rate of the rows that are answered, as the least sure go to a person, and where it is served."""
    styles = _compared(report)
    marks: list[Mark] = []
    for method, style in styles.items():
        curve = report.methods[method]["risk_coverage"]
        points = list(zip(curve["coverage"], curve["risk"], strict=True))
        marks.append(Line(style, points))
    target = report.promise.target_risk
    review, accepted = operating_point(report)
    legend: list[tuple[Style, str]] = [
        (style, f"{display_name(method)}: AURC {report.methods[method]['aurc']:.3f}")
        for method, style in styles.items()
    ]
    if report.costs is None and report.promise.risks is None:
        marks.append(Line("guide", [(0.0, target), (1.0, target)]))
        legend.append(("guide", f"target {percent(target)}"))
    said = "Nothing is accepted."
    risks = [point[1] for mark in marks if isinstance(mark, Line) for point in mark.points]
    if accepted is not None:
        coverage, (low, high) = 1 - review.value, accepted.interval
        said = f"As served, {percent(coverage)} of the rows are accepted and {accepted} of them are wrong."
        marks += [Whisker("strong", coverage, low, high, said), Dot("strong", coverage, accepted.value, said)]
        legend.append(("strong", "as served, 95 % interval"))
        risks.append(high)
    return Chart(
        "Mistakes among the answers that are kept",
        f"Error rate against the share of rows that are answered, the surest first. {said}",
        Axis("answered without a person", 0, 1, percent=True),
        Axis("wrong", 0, min(1.0, 1.05 * max(risks)), percent=True),
        marks,
        legend,
        note="The curve goes by the review score alone, row by row. The dot need not lie on it: rows go to a person by "
        "a flag too, such as being unlike the training rows, and where inputs have several labels whole inputs do.",
    )


def cost_chart(report: Report) -> Chart:
    """Return the mean cost of an input as the cheapest answers are accepted first, and where it is served."""
    if report.costs is None or report.cost is None:
        raise ConfigError("a report without costs has no chart of them")
    rows, figures, review = report.rows, report.cost, report.costs.review
    matrix = report.costs.matrix(report.labels)
    expected = cheapest(rows.probs, matrix, rows.probs > 0)[1]
    each = (targets_of(rows.labels, len(matrix)) @ matrix).gather(1, rows.predicted[:, None])[:, 0]
    paid = (each - review)[expected.argsort(stable=True)].cumsum(0)
    means = [review, *(review + paid / len(rows)).tolist()]
    points = [(place / len(rows), mean) for place, mean in enumerate(means)]
    low, high = figures["interval"]
    share, said = float((~rows.review).double().mean()), cost_in_words(figures)
    return Chart(
        "What answers cost",
        f"Mean cost of an input against the share of rows that are answered, the least expected cost first: {said}.",
        Axis("answered without a person", 0, 1, percent=True),
        Axis("mean cost", 0, 1.05 * max(*means, high) or 1.0),
        [
            Line("served", points),
            Line("guide", [(0.0, review), (1.0, review)]),
            Whisker("strong", share, low, high, said),
            Dot("strong", share, figures["mean"], said),
        ],
        [
            ("served", display_name(report.served)),
            ("guide", f"a person looks at all: {review:.4g}"),
            ("strong", "as served, 95 % interval"),
        ],
        note="The unit is that of the stated costs. Flags send rows to a person whatever they are expected to cost, so "
        "the dot need not lie on the curve.",
    )


def _compared(report: Report) -> dict[str, Style]:
    alone: dict[str, Style] = {"map": "map"} if report.shows_map else {}
    styles: dict[str, Style] = {**alone, "temperature": "other", report.served: "served"}
    return {method: style for method, style in styles.items() if method in report.methods}


def uncertainty_charts(report: Report) -> list[Chart]:
    """Return how uncertain right and wrong answers are: the review score, and the epistemic part where there is one."""
    rows = report.rows
    charts = [_histogram(report, "Uncertainty", "entropy, nats", rows.score, rows.threshold)]
    if rows.epistemic is not None and float(rows.epistemic.max()) > 0:
        charts.append(_histogram(report, "Epistemic part", "mutual information, nats", rows.epistemic, None))
    return charts


def _histogram(report: Report, title: str, axis: str, values: torch.Tensor, threshold: float | None) -> Chart:
    wrong, values = report.rows.wrong, values.double()
    # Without the few largest, which would press all others into one bin.
    high = max(float(values.quantile(0.995)), 1e-6)
    width = high / _HISTOGRAM_BINS
    index = (values / width).long().clamp(0, _HISTOGRAM_BINS - 1)
    marks: list[Mark] = []
    tallest = 0.0
    medians = []
    kinds: tuple[tuple[Style, torch.Tensor, str], ...] = (("right", ~wrong, "right"), ("wrong", wrong, "wrong"))
    for place, (style, mask, name) in enumerate(kinds):
        count = int(mask.sum())
        if not count:
            continue
        medians.append(f"median of {count} {name} answers {float(values[mask].median()):.3f}")
        for i, number in enumerate(index[mask].bincount(minlength=_HISTOGRAM_BINS).tolist()):
            share, left = number / count, i * width + place * width / 2
            tallest = max(tallest, share)
            if number:
                says = f"{number} of {count} {name} answers from {i * width:.3f} to {(i + 1) * width:.3f}"
                marks.append(Bar(style, left + 0.04 * width, left + width / 2 - 0.04 * width, 0, share, says))
    legend: list[tuple[Style, str]] = [("right", "right answers"), ("wrong", "wrong answers")]
    if threshold is not None and threshold < high:
        marks.append(Line("guide", [(threshold, 0.0), (threshold, 1.05 * tallest)]))
        legend.append(("guide", f"a person looks above {threshold:.3f}"))
    return Chart(
        title,
        f"{title} of right and of wrong answers, as shares of each: {'; '.join(medians)}.",
        Axis(axis, 0, high),
        Axis("share of the answers", 0, 1.05 * tallest, percent=True),
        marks,
        legend,
    )
