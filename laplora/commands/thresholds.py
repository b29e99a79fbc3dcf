"""A threshold that an artifact must not cross: ``accuracy<0.8``, ``ece_excess>0``, ``map.nll>=0.5``."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laplora.errors import ConfigError

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
#: The metrics that can have a threshold: those of ``laplora.metrics.scores.Evaluation``, and of the ECE's noise.
METRICS = (
    "accuracy",
    "nll",
    "ece",
    "ece_limit",
    "ece_excess",
    "brier",
    "auroc_error",
    "auprc_error",
    "aurc",
    "excess_aurc",
)
_FORM = re.compile(r"\s*([A-Za-z_][\w.-]*?)\s*(>=|<=|>|<)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class MetricThreshold:
    """Fails where ``metric`` of ``predictive`` (None: of the one that answers) compares so with ``limit``.

    ``end`` is "low" or "high" of the metric's 95 % interval, or None for the metric itself.
    """

    text: str
    predictive: str | None
    metric: str
    end: str | None
    operator: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> MetricThreshold:
        """Return the threshold that a text means; ConfigError: none."""
        form = _FORM.fullmatch(text)
        try:
            limit = float(form[3]) if form else math.nan
        except ValueError:
            limit = math.nan
        if form is None or not math.isfinite(limit):
            raise ConfigError(f"--fail-if {text!r}: expected METRIC>NUMBER as in 'ece_excess>0' or 'map.accuracy<0.8'")
        parts = form[1].split(".")
        end = parts.pop() if parts[-1] in ("low", "high") and len(parts) > 1 else None
        if len(parts) > 2 or not all(parts):
            raise ConfigError(f"--fail-if {text!r}: expected [PREDICTIVE.]METRIC[.low|.high] before the comparison")
        if parts[-1] not in METRICS:
            raise ConfigError(f"--fail-if {text!r}: no metric {parts[-1]!r}, but {', '.join(METRICS)}")
        if end is not None and parts[-1] == "ece":
            raise ConfigError(
                f"--fail-if {text!r}: the bootstrap interval of an ECE lies too high, as the ECE itself does; "
                "'ece_excess>0' fails where it is more than a calibrated model would have by chance"
            )
        return cls(text, parts[0] if len(parts) == 2 else None, parts[-1], end, form[2], limit)

    def check_predictive(self, measured: Sequence[str]) -> None:
        """Raise ConfigError for a predictive that is not among those that will be measured."""
        if self.predictive is not None and self.predictive not in measured:
            raise ConfigError(
                f"--fail-if {self.text!r}: no predictive {self.predictive!r} is measured, but {', '.join(measured)}"
            )

    def check(self, metrics: Mapping[str, Mapping[str, Any]], answering: str) -> Crossed:
        """Compare with measured metrics, by predictive; ConfigError: no such predictive or metric."""
        name = self.predictive or answering
        if name not in metrics:
            raise ConfigError(f"--fail-if {self.text!r}: {name!r} was not measured, but {', '.join(metrics)}")
        of, intervals = metrics[name], metrics[name]["intervals"]
        interval = intervals.get(self.metric)
        if self.end is not None and interval is None:
            raise ConfigError(f"--fail-if {self.text!r}: {self.metric!r} has no interval, but {', '.join(intervals)}")
        value = of.get(self.metric) if interval is None or self.end is None else interval[self.end == "high"]
        crossed = value is None or _OPERATORS[self.operator](value, self.limit)
        return Crossed(self.text, name, value, interval, crossed)


@dataclass(frozen=True)
class Crossed:
    """A threshold after the measurement: its value and the metric's 95 % interval, and whether it fails.

    A metric that these rows do not give, as ``auroc_error`` without a mistake, has the value None and fails.
    """

    bar: str
    predictive: str
    value: float | None
    interval: list[float] | None
    failed: bool
