"""Times taken in turns, and their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times, or another figure: the median over turns, the lowest and the highest."""

    value: float
    low: float
    high: float


def in_turns(
    functions: Mapping[str, Callable[[], Any]], turns: int, clock: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Return each function's seconds, called one after the other, turn by turn, after one turn that is not counted.

    Args:
        clock: other seconds than those that pass, such as ``time.process_time`` on a busy machine.
    """
    now = clock or _now
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            begun = now()
            function()
            if turn:
                seconds[name].append(now() - begun)
    return seconds


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> Ratio:
    """Return one function's times over another's."""
    return spread([a / b for a, b in zip(times[of], times[to], strict=True)])


def spread(values: Sequence[float]) -> Ratio:
    """Return a figure of all turns."""
    return Ratio(statistics.median(values), min(values), max(values))


def exactly(value: float) -> Ratio:
    """Return a figure that is the same at every turn."""
    return spread([value])


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
