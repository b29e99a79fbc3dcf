"""The report of one run of the device: a plain record, written by the device, read by the metrics and the traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

BatchOutcome = Literal["ok", "out_of_memory", "failed"]


@dataclass(frozen=True)
class BatchReport:
    """One run of the device.

    Attributes:
        tokens: real tokens; padded_tokens: rows times the longest row.
        outcome: ``ok``, or why the batch was split or given up.
        begun: ``time.monotonic`` seconds.
        traces: of the requests whose rows it held, each once (``RequestRecord.trace``).
    """

    predictive: str
    rows: int
    tokens: int
    padded_tokens: int
    duration_s: float
    outcome: BatchOutcome
    begun: float = 0.0
    traces: tuple[Any, ...] = ()
