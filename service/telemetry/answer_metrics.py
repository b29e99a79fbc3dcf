"""How answers look, for Prometheus: uncertainty, confidence, flags and decisions by artifact and predictive."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

from laplora.decisions.thresholds import Decision, Flag

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction

_BY = ["artifact", "predictive"]
# Up to ln 2 = 0.69 nats for two classes, ln 4 = 1.39 for four.
_NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0, 1.4, 2.0)
_CONFIDENCES = (0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99, 0.999)
_MASSES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_SET_SIZES = (0, 1, 2, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True)
class _Series:
    """The children of one artifact and predictive, looked up once: a look-up costs as much as an observation."""

    epistemic: Histogram
    confidence: Histogram
    label_mass: Histogram
    set_labels: Histogram
    tokens: Counter
    truncated: Counter
    flags: dict[str, Counter]
    decisions: dict[str, Counter]


class AnswerMetrics:
    """Histograms and counters of answered inputs. The predictive is the one that answered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        self._epistemic = histogram(
            "laplora_epistemic_uncertainty_nats",
            "Epistemic uncertainty of each answer that has one, nats.",
            _BY,
            buckets=_NATS,
        )
        self._confidence = histogram(
            "laplora_confidence_ratio",
            "Largest probability of each answer; of several labels, the least sure one's.",
            _BY,
            buckets=_CONFIDENCES,
        )
        self._label_mass = histogram(
            "laplora_label_mass_ratio",
            "Probability that the whole vocabulary puts on the labels, of each answer.",
            _BY,
            buckets=_MASSES,
        )
        self._set_labels = histogram(
            "laplora_prediction_set_labels", "Labels in the prediction set of each answer.", _BY, buckets=_SET_SIZES
        )
        self._tokens = counter("laplora_answered_tokens", "Prompt tokens of answered inputs.", _BY)
        self._truncated = counter("laplora_truncated_rows", "Answered inputs whose prompt was cut.", _BY)
        self._flags = counter("laplora_flags", "Flags raised.", [*_BY, "flag"])
        self._decisions = counter("laplora_decisions", "Decisions made.", [*_BY, "decision"])
        self._series: dict[tuple[str, str], _Series] = {}
        #: Requests count while another thread drops the series of artifacts that went.
        self._changing = threading.Lock()

    def count(self, artifact: str, answers: Iterable[Prediction]) -> None:
        """Count answers of a loaded artifact: a few microseconds each."""
        for answer in answers:
            series = self._series.get((artifact, answer.predictive)) or self._begin(artifact, answer.predictive)
            if answer.epistemic is not None:
                series.epistemic.observe(answer.epistemic)
            series.confidence.observe(answer.confidence)
            if answer.label_mass is not None:
                series.label_mass.observe(answer.label_mass)
            series.set_labels.observe(len(answer.prediction_set))
            series.tokens.inc(answer.tokens)
            if answer.truncated:
                series.truncated.inc()
            for flag in answer.flags:
                series.flags[flag].inc()
            series.decisions[answer.decision].inc()

    def keep(self, artifacts: Collection[str]) -> None:
        """Drop the series of all artifacts but these, so that there are never more than can be loaded."""
        with self._changing:
            for artifact, predictive in [by for by in self._series if by[0] not in artifacts]:
                del self._series[artifact, predictive]
                for metric in (self._epistemic, self._confidence, self._label_mass, self._set_labels):
                    metric.remove(artifact, predictive)
                for counter in (self._tokens, self._truncated):
                    counter.remove(artifact, predictive)
                for flag in get_args(Flag):
                    self._flags.remove(artifact, predictive, flag)
                for decision in get_args(Decision):
                    self._decisions.remove(artifact, predictive, decision)

    def _begin(self, artifact: str, predictive: str) -> _Series:
        # Every flag and decision from 0 on: a rate over a series that appears with its first event misses that event.
        by = (artifact, predictive)
        with self._changing:
            series = self._series[by] = _Series(
                self._epistemic.labels(*by),
                self._confidence.labels(*by),
                self._label_mass.labels(*by),
                self._set_labels.labels(*by),
                self._tokens.labels(*by),
                self._truncated.labels(*by),
                {flag: self._flags.labels(*by, flag) for flag in get_args(Flag)},
                {decision: self._decisions.labels(*by, decision) for decision in get_args(Decision)},
            )
        return series
