"""Whose turn it is: what each caller's part of the device is worth."""

from __future__ import annotations

#: Callers whose names start so are evaluation jobs: they have time.
JOB_PREFIX = "job:"
JOB_WEIGHT = 0.25


def weight_of(caller: str) -> float:
    """Return what a caller's share of the device is in proportion to: 1, and less for an evaluation job."""
    return JOB_WEIGHT if caller.startswith(JOB_PREFIX) else 1.0
