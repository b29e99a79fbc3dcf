"""The figures of ``service.feedback.watch`` as Prometheus gauges, computed when they are scraped.

Labels are closed: an artifact that is loaded, one of its predictives, one of three references. Gauges of an artifact
that is no longer loaded are gone with the next scrape, and a figure that cannot be computed has no gauge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.feedback.watch import Report, Signal
from service.telemetry.unfailing import unfailing

#: ``laplora_feedback_<name>``: attributes of a report.
_ANSWERS = {
    "recent_rows": "Answers that drift is computed from.",
    "accepted_share": "Accepted, of the recent answers.",
    "labelled_accepted_share": "Accepted, of the labelled answers.",
}
#: ``laplora_reference_<name>``: attributes of the reference.
_REFERENCE = {
    "accuracy": "Accuracy in the artifact's evaluation.",
    "nll": "NLL in the artifact's evaluation, nats.",
    "ece": "ECE in the artifact's evaluation.",
    "brier": "Brier score in the artifact's evaluation.",
    "auroc_error": "AUROC of mistakes by the review score in the artifact's evaluation.",
    "coverage": "Stated level of the prediction sets.",
}
#: ``laplora_feedback_<name>``: attributes of the figures.
_FIGURES = {
    "accuracy": "Accuracy of labelled predictions.",
    "nll": "Mean NLL of labelled predictions, nats.",
    "nll_limit": "Highest NLL within chance of the reference, nats.",
    "ece": "ECE of labelled predictions, 15 bins.",
    "ece_expected": "ECE that a calibrated model measures on the same confidences.",
    "ece_limit": "Highest ECE within chance.",
    "brier": "Brier score of labelled predictions.",
    "auroc_error": "AUROC of mistakes by the review score.",
    "coverage": "Share of labelled predictions whose set holds the label.",
    "coverage_limit": "Lowest coverage within chance of the stated level.",
    "accepted_rows": "Labelled predictions that were accepted.",
    "accepted_risk": "Error rate of accepted answers.",
    "accepted_risk_limit": "Highest error rate of accepted answers within chance of the target.",
    "target_risk": "Mean error rate that accepted answers were to have.",
    "map_nll": "Mean NLL of MAP on the same rows, nats.",
    "map_gain": "NLL of MAP less that of the served predictive, nats.",
    "map_gain_limit": "Lowest gain over MAP within chance of none, nats.",
}


class CalibrationGauges(Collector):
    """A collector of the reports that a function returns."""

    def __init__(self, reports: Callable[[], Sequence[Report]], kept: Callable[[], int]) -> None:
        self._reports, self._kept = reports, kept

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return nothing, so that registering computes no figures."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the gauges of this moment."""
        yield GaugeMetricFamily("laplora_feedback_kept_rows", "Predictions kept by id.", value=self._kept())
        reports: Sequence[Report] = ()
        # The other metrics are scraped in the same answer.
        with unfailing("calibration gauges"):
            reports = self._reports()
        yield _family(
            "laplora_feedback_rows",
            "Labelled predictions that the figures are computed from.",
            [(report, 0 if report.figures is None else report.figures.rows) for report in reports],
        )
        for prefix, names, parts in (
            ("feedback", _ANSWERS, reports),
            ("reference", _REFERENCE, [report.reference for report in reports]),
            ("feedback", _FIGURES, [report.figures for report in reports]),
        ):
            for name, meaning in names.items():
                # Without figures there is no such attribute, and no gauge.
                values = [(report, getattr(part, name, None)) for report, part in zip(reports, parts, strict=True)]
                yield _family(f"laplora_{prefix}_{name}", meaning, values)
        yield from _drift(reports)


def _family(name: str, meaning: str, values: Sequence[tuple[Report, float | None]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=["artifact", "predictive"])
    for report, value in values:
        if value is not None:
            family.add_metric([report.artifact, report.predictive], value)
    return family


def _drift(reports: Sequence[Report]) -> Iterator[GaugeMetricFamily]:
    for signal in get_args(Signal):
        gap, p_value = (
            GaugeMetricFamily(f"laplora_{signal}_drift{name}", meaning, labels=["artifact", "predictive", "reference"])
            for name, meaning in (
                ("", f"Gap between the cumulative distributions of {signal}, recent and reference: 0 none, 1 apart."),
                ("_p_value", "Probability of such a gap by chance."),
            )
        )
        for report in reports:
            for found in report.drift:
                if found.signal == signal:
                    values = [report.artifact, report.predictive, found.reference]
                    gap.add_metric(values, found.drift.gap)
                    p_value.add_metric(values, found.drift.p_value)
        yield gap
        yield p_value
