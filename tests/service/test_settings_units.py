"""Settings that are numbers say their units."""

from __future__ import annotations

import re
from typing import get_args

from service.settings import Settings

#: What a number's description has to name, by how its name ends; numbers of things name the things.
UNITS = {"_s": "Seconds", "_bytes": "bytes", "_tokens": "tokens", "_mb": "MiB"}
COUNTED = r"\b(inputs|artifacts|requests|predictions|tokens|port|jobs|rows|answers|threads|connections|places|files)\b"


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
