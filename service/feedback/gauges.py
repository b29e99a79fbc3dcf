"""The figures of feedback as Prometheus gauges, computed when they are scraped, of loaded artifacts alone.

Labels are closed. A figure that cannot be computed has no gauge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.feedback.records import SeriesReport, Signal
from service.telemetry.unfailing import unfailing

#: Figures that the artifact's own evaluation has too; coverage there is the stated level.
_MEASURED = {
    "accuracy": "accuracy",
    "nll": "mean NLL, nats",
    "ece": "ECE, 15 bins",
    "brier": "Brier score",
    "auroc_error": "AUROC of mistakes by the review score",
    "coverage": "share of prediction sets that hold the label",
}
#: By gauge, the attribute of a report that it shows, and what that means.
_GAUGES = {
    "feedback_rows": ("labelled", "Labelled predictions that the figures are computed from."),
    "feedback_recent_rows": ("recent", "Answers that drift is computed from."),
    "feedback_accepted_share": ("accepted_share", "Accepted, of the recent answers."),
    "feedback_labelled_accepted_share": ("labelled_accepted_share", "Accepted, of the labelled answers."),
    **{f"reference_{n}": (f"baseline.{n}", f"In the artifact's evaluation: {what}.") for n, what in _MEASURED.items()},
    **{f"feedback_{n}": (f"figures.{n}.value", f"Of labelled predictions: {what}.") for n, what in _MEASURED.items()},
    "feedback_nll_limit": ("figures.nll.limit", "Highest NLL within chance of the reference, nats."),
    "feedback_ece_expected": ("figures.ece_expected", "ECE that a calibrated model measures on the same confidences."),
    "feedback_ece_limit": ("figures.ece.limit", "Highest ECE within chance."),
    "feedback_coverage_limit": ("figures.coverage.limit", "Lowest coverage within chance of the stated level."),
    "feedback_accepted_rows": ("figures.accepted", "Labelled predictions that were accepted."),
    "feedback_accepted_risk": ("figures.accepted_risk.value", "Error rate of accepted answers."),
    "feedback_accepted_risk_limit": ("figures.accepted_risk.limit", "Highest within chance of the target."),
    "feedback_target_risk": ("figures.accepted_risk.reference", "Mean error rate that accepted answers were to have."),
    "feedback_map_nll": ("figures.map_nll", "Mean NLL of MAP on the same rows, nats."),
    "feedback_map_gain": ("figures.map_gain.value", "NLL of MAP less that of the served predictive, nats."),
    "feedback_map_gain_limit": ("figures.map_gain.limit", "Lowest gain over MAP within chance of none, nats."),
}


class CalibrationGauges(Collector):
    """A collector of the reports that a function returns."""

    def __init__(self, reports: Callable[[], Sequence[SeriesReport]], kept: Callable[[], int]) -> None:
        self._reports, self._kept = reports, kept

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return nothing, so that registering computes no figures."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("laplora_feedback_kept_rows", "Predictions kept by id.", value=self._kept())
        reports: Sequence[SeriesReport] = ()
        # The other metrics are scraped in the same answer.
        with unfailing("calibration gauges"):
            reports = self._reports()
        for name, (attribute, meaning) in _GAUGES.items():
            family = GaugeMetricFamily(f"laplora_{name}", meaning, labels=["artifact", "predictive"])
            for report in reports:
                # Nothing is labelled: no figures, and no gauges of them.
                if report.figures is None and attribute.startswith("figures."):
                    continue
                value = attrgetter(attribute)(report)
                if value is not None:
                    family.add_metric([report.artifact, report.predictive], value)
            yield family
        yield from _drift(reports)


def _drift(reports: Sequence[SeriesReport]) -> Iterator[GaugeMetricFamily]:
    for signal in get_args(Signal):
        gap, p_value = (
            GaugeMetricFamily(f"laplora_{signal}_drift{name}", meaning, labels=["artifact", "predictive", "reference"])
            for name, meaning in (
                ("", f"Gap between the cumulative distributions of {signal}, recent and reference: 0 none, 1 apart."),
                ("_p_value", "Probability of such a gap by chance."),
            )
        )
        for report in reports:
            for figure in report.drift:
                if figure.signal == signal:
                    values = [report.artifact, report.predictive, figure.reference]
                    gap.add_metric(values, figure.gap)
                    p_value.add_metric(values, figure.p_value)
        yield gap
        yield p_value
