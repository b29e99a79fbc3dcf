"""The one error of this room, which imports nothing of laplora."""

from __future__ import annotations


class HeadError(ValueError):
    """Features, labels or settings that no head can be fitted on: what was expected, what came, what to do."""
