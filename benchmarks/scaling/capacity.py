"""From costs to requests a second and dollars a million: arithmetic alone, for devices that nobody here has measured.

A prediction of ``T`` tokens by a model of ``P`` parameters is ``2 P T`` floating-point operations (Kaplan et al., 2020,
section 2.1, without attention's own, which are few at these lengths). A device does a share of its peak of them: the
share is an assumption, with a range. What the predictive costs in MAP answers is measured on a processor
(benchmarks/RESULTS.md), and operations are the same on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Of a quotient, far below anything counted.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Card:
    """A device on paper.

    Attributes:
        peak: dense bfloat16 operations a second, from the maker's data sheet.
        used: share of it, low, middle and high: an assumption.
        usd_per_hour: an assumption.
    """

    name: str
    peak: float
    used: tuple[float, float, float]
    usd_per_hour: float


#: NF4 weights are unpacked before they are multiplied, and batches are small: no more than half of the peak is assumed.
CARDS = (
    Card("L4", 121e12, (0.2, 0.3, 0.45), 0.8),
    Card("A100 80 GB", 312e12, (0.2, 0.35, 0.5), 1.9),
    Card("H100 SXM", 989e12, (0.15, 0.3, 0.45), 3.0),
)


def predictions_per_s(card: Card, *, parameters: float, tokens: int, map_answers: float, used: float) -> float:
    """Return the predictions a second of one device that is never idle.

    Args:
        tokens: of a prompt; ``map_answers``: what the predictive costs, 1 for MAP.
        used: share of the peak.
    """
    return card.peak * used / (2 * parameters * tokens * map_answers)


def usd_per_million(usd_per_hour: float, per_s: float, busy: float) -> float:
    """Return what a million predictions cost on devices that are busy for this share of the time."""
    return usd_per_hour / 3600 / (per_s * busy) * 1e6


@dataclass(frozen=True)
class Fleet:
    """Devices for a load, in cells of one event loop and as many devices as it can feed."""

    devices: int
    cells: int
    devices_per_cell: int


def fleet(load_per_s: float, *, device_per_s: float, row_s: float, busy: float) -> Fleet:
    """Return what answers so many predictions a second.

    Args:
        device_per_s: predictions a second of one device.
        row_s: processor seconds of an event loop for a row, its share of the request's among them.
        busy: most of the time that devices and event loops are busy, so that queues stay short.
    """
    devices = _at_least(load_per_s / (device_per_s * busy))
    loop_per_s = busy / row_s
    fed = max(1, math.floor(loop_per_s / (device_per_s * busy) + _ROUNDING))
    return Fleet(devices, max(_at_least(devices / fed), _at_least(load_per_s / loop_per_s)), fed)


def _at_least(number: float) -> int:
    """Return the whole number that is not below; what rounding adds is none of it."""
    return math.ceil(number - _ROUNDING)
