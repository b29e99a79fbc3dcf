"""Tables of the site that the code writes: settings, log events and metrics of the server, fields of a training run."""

from __future__ import annotations

from prometheus_client.metrics import MetricWrapperBase
from training_fields import fields

from service.settings import Settings
from service.telemetry.logs import EVENTS
from service.telemetry.metrics import Metrics
from training.report.markdown import escaped, markdown_table


def events() -> str:
    """Return what each event of the log means, and its fields."""
    return _table(("event", "when; fields"), [(f"`{name}`", meaning) for name, meaning in EVENTS.items()])


def metrics() -> str:
    """Return each metric with its type, labels and meaning."""
    rows = []
    for metric in Metrics().registry._collector_to_names:
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append((f"`{name}`", family.type, ", ".join(metric._labelnames), family.documentation))
    return _table(("metric", "type", "labels", "what"), sorted(rows))


def settings() -> str:
    """Return each setting as its flag, with its default and meaning."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "", ()) else f"`{field.default}`"
        rows.append((f"`--{name.replace('_', '-')}`", default, field.description or ""))
    return _table(("flag", "default", "what"), rows)


def training() -> str:
    """Return each field of a run's configuration with its values, default and meaning."""
    return _table(("field", "values", "default", "meaning"), fields())


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return markdown_table(head, [map(escaped, row) for row in rows], left=range(len(head)))


#: By the name that a page gives in ``<!-- reference: NAME -->``.
TABLES = {"events": events, "metrics": metrics, "settings": settings, "training": training}
