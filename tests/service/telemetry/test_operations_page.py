"""docs/operations.md: its tables are what the code says. LAPLORA_UPDATE_SNAPSHOT=1 writes them anew."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from api_page import table
from prometheus_client.metrics import MetricWrapperBase

from service.settings import Settings
from service.telemetry.logs import EVENTS
from service.telemetry.metrics import Metrics

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "operations.md"
#: What a number's description has to name, by how its name ends; numbers of things name the things.
UNITS = {"_s": "Seconds", "_bytes": "bytes", "_tokens": "tokens", "_mb": "MiB"}
COUNTED = r"\b(inputs|artifacts|requests|predictions|tokens|port|jobs|rows|answers|threads|connections|places|files)\b"


def events() -> str:
    return table(("event", "when; fields"), [(f"`{name}`", meaning) for name, meaning in EVENTS.items()])


def metrics() -> str:
    rows = []
    for metric in Metrics().registry._collector_to_names:
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append((f"`{name}`", family.type, ", ".join(metric._labelnames), family.documentation))
    return table(("metric", "type", "labels", "what"), sorted(rows))


def settings() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "", ()) else f"`{field.default}`"
        rows.append((f"`--{name.replace('_', '-')}`", default, field.description or ""))
    return table(("flag", "default", "what"), rows)


@pytest.mark.parametrize("part", [events, metrics, settings], ids=lambda part: part.__name__)
def test_tables_are_what_the_code_says(part: Callable[[], str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- {part.__name__} -->\n", f"\n<!-- /{part.__name__} -->"
    if os.environ.get("LAPLORA_UPDATE_SNAPSHOT"):
        before, after = text.split(begin)[0], text.split(end.strip())[1]
        text = f"{before}{begin}{part()}{end}{after}"
        PAGE.write_text(text, encoding="utf-8")
    assert text.split(begin)[1].split(end)[0] == part(), (
        "LAPLORA_UPDATE_SNAPSHOT=1 python -m pytest tests/service/telemetry/test_operations_page.py writes it"
    )


def test_every_number_that_can_be_set_names_its_unit() -> None:
    numbers = {
        name: field.description or ""
        for name, field in Settings.model_fields.items()
        if {int, float} & {field.annotation, *get_args(field.annotation)}
    }
    assert len(numbers) > 10
    for name, description in numbers.items():
        unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), None)
        named = re.search(COUNTED, description) if unit is None else unit in description
        assert named, f"{name}: the description names no unit"
