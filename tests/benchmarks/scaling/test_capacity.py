"""The arithmetic of devices and dollars."""

from __future__ import annotations

import pytest

from benchmarks.scaling.capacity import Card, fleet, predictions_per_s, usd_per_million

CARD = Card("paper", 100e12, (0.1, 0.2, 0.4), 3.6)


def test_a_prediction_is_two_operations_a_parameter_and_token() -> None:
    per_s = predictions_per_s(CARD, parameters=1e9, tokens=100, map_answers=1.0, used=0.2)
    assert per_s == pytest.approx(100)
    assert predictions_per_s(CARD, parameters=1e9, tokens=100, map_answers=2.5, used=0.2) == pytest.approx(40)


def test_a_million_costs_the_hours_that_it_takes() -> None:
    assert usd_per_million(3.6, 100.0, 1.0) == pytest.approx(10.0)
    assert usd_per_million(3.6, 100.0, 0.5) == pytest.approx(20.0)


def test_a_fleet_has_devices_for_the_load_and_event_loops_to_feed_them() -> None:
    found = fleet(1000.0, device_per_s=50.0, row_s=0.002, busy=0.5)
    assert found.devices == 40  # 25 predictions a second each
    assert found.devices_per_cell == 10  # an event loop takes 250
    assert found.cells == 4
    slow = fleet(1000.0, device_per_s=50.0, row_s=0.1, busy=0.5)  # not even one device
    assert (slow.devices, slow.devices_per_cell, slow.cells) == (40, 1, 200)


@pytest.mark.parametrize("devices", range(1, 30))
def test_rounding_adds_no_device(devices: int) -> None:
    for per_s in (76.6, 71.3, 54.1):
        assert fleet(devices * per_s * 0.7, device_per_s=per_s, row_s=0.001, busy=0.7).devices == devices
