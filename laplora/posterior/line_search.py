"""Minimising a function of one variable that can only be evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable


def golden_section(function: Callable[[float], float], low: float, high: float, tolerance: float = 1e-3) -> float:
    """Return a local minimiser of a scalar function between two bounds, to an absolute tolerance (Kiefer 1953)."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > tolerance:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2
