"""Figures as a committed record has them."""

from __future__ import annotations

from typing import Any

_DIGITS = 6  # more would be other ones on every processor


def rounded(value: Any) -> Any:
    """Return JSON values with every float rounded to six digits."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
