"""Seconds that an answer takes: of the device by the padded tokens of a batch, and of the host by the request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

#: Padded batches that are timed, rows x tokens: what the server's batches are like, from one short row to a full one.
SIZES = ((1, 16), (1, 64), (4, 32), (8, 32), (8, 64), (16, 32))


@dataclass(frozen=True)
class DeviceCost:
    """Seconds of the device: ``base_s`` a batch, and ``token_s`` a padded token of it."""

    base_s: float
    token_s: float

    def of(self, padded_tokens: float) -> float:
        """Return the seconds of a batch."""
        return self.base_s + self.token_s * padded_tokens


@dataclass(frozen=True)
class HostCost:
    """Processor seconds of everything but the device.

    Attributes:
        request_s: of an answered request of one row; ``row_s``: of each further row.
        refusal_s: of a request that is refused for want of room.
    """

    request_s: float
    row_s: float
    refusal_s: float

    def of(self, rows: int) -> float:
        """Return the seconds of an answered request."""
        return self.request_s + (rows - 1) * self.row_s


def fit_line(points: Iterable[tuple[float, float]]) -> DeviceCost:
    """Return the line through (padded tokens, seconds), by least squares of the relative errors; no base below 0."""
    tokens, seconds = np.array(list(points), dtype=float).T
    design = np.stack([np.ones_like(tokens), tokens], axis=1) / seconds[:, None]
    (base, slope), *_ = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)
    if base < 0:
        relative = tokens / seconds
        base, slope = 0.0, float(relative.sum() / (relative**2).sum())
    return DeviceCost(float(base), float(slope))


def device_points(
    run: Callable[[int, int], object], *, turns: int, sizes: Sequence[tuple[int, int]] = SIZES
) -> list[tuple[int, float]]:
    """Return (padded tokens, seconds of this thread's processor) of batches, the median of some turns.

    Args:
        run: scores a batch of so many rows of so many tokens each.
    """
    seconds: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
    for turn in range(turns + 1):
        for rows, tokens in sizes:
            begun = time.process_time()
            run(rows, tokens)
            if turn:
                seconds[rows, tokens].append(time.process_time() - begun)
    return [(rows * tokens, float(np.median(taken))) for (rows, tokens), taken in seconds.items()]
