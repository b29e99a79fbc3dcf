"""Time limits that a test lets pass, without a margin that a slow machine could cross."""

from __future__ import annotations

from collections.abc import Iterator


def longer_and_longer(first_s: float = 0.2) -> Iterator[float]:
    """Yield limits, each twice the one before, for a test of what is under way as one passes.

    The test ends once it had come that far by then, and pytest's own limit ends one that never does.
    """
    while True:
        yield first_s
        first_s *= 2
