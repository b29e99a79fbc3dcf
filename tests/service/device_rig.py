"""A queue and a device in front of a predictor that can be held, with no application around them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serving import FakePredictor

from laplora.prompts.rows import EncodedRow
from service.scoring.admission import NOTHING, Amount
from service.scoring.device import Device
from service.scoring.device_faults import DeviceHealth
from service.scoring.entry import Entry
from service.scoring.queue import Queue
from service.scoring.ticket import Ask, Ticket
from service.telemetry.batch_report import BatchReport


@dataclass
class Rig:
    predictor: Any
    queue: Queue
    device: Device
    reports: list[BatchReport] = field(default_factory=list)

    def submit(
        self, *rows: EncodedRow | int, predictive: str = "laplace", deadline: float = math.inf, predictor: Any = None
    ) -> Entry:
        """Return the entry of rows that now wait; a number stands for a row of this one token."""
        predictor = predictor or self.predictor
        encoded = tuple(predictor.row(row) if isinstance(row, int) else row for row in rows)
        ticket = Ticket(predictor.artifact.digest, encoded, Ask(predictive), caller="")
        entry = Entry(ticket.caller, deadline)
        amount = Amount(len(encoded), ticket.tokens)
        self.queue.enter(entry, amount, fewest_tokens=amount.tokens, now=time.monotonic())
        self.queue.put(entry, ticket, predictor, now=time.monotonic())
        return entry

    def occupy(self, predictive: str = "laplace") -> Entry:
        """Put a row of token 2 on the device; it stays there until the predictor is released."""
        self.predictor.hold()
        entry = self.submit(2, predictive=predictive)
        self.predictor.entered.wait()
        return entry

    @property
    def batches(self) -> list[tuple[str, list[int]]]:
        """The predictive of each batch that ran, and its rows' first tokens."""
        return [(name, [row.token_ids[0] for row in rows]) for name, rows in self.predictor.batches]

    def assert_empty(self) -> None:
        assert (self.queue.rows, self.queue.tokens, self.queue.entries) == (0, 0, frozenset())
        assert self.queue.held == NOTHING


@contextmanager
def rig(
    predictor: Any = None,
    *,
    token_budget: int = 16,
    limits: Amount = Amount(rows=12, tokens=64, text_bytes=0),  # noqa: B008
    on_batch: tuple[Callable[[BatchReport], None], ...] = (),
    health: DeviceHealth | None = None,
) -> Iterator[Rig]:
    predictor = predictor or FakePredictor()
    queue, reports = Queue(limits), list[BatchReport]()
    device = Device(queue, token_budget=token_budget, on_batch=(*on_batch, reports.append), health=health)
    device.start()
    try:
        yield Rig(predictor, queue, device, reports)
    finally:
        if isinstance(predictor, FakePredictor):
            predictor.released.set()
        device.stop(join_timeout_s=60)


def named(entry: Entry) -> list[int]:
    """Return the largest token of each row of a request, which its answer names."""
    return [round(p.arrays.map_probs[0] * 100_000) for p in entry.future.result()]
