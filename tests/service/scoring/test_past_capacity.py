"""Twice the capacity, by simulation: how long do those wait that are let in? Real admission and turns, no device."""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import pytest

from service.errors import QueueFullError
from service.scoring.admission import Admission, Amount, Reservation
from service.scoring.batching import Waiting, next_batch, padded_tokens
from service.scoring.fairness import Request, Turns

BUDGET, ROWS = 512, 256
#: Seconds of a batch and of a padded token, as the default model has them on two cores.
BATCH_S, TOKEN_S = 0.03, 0.001


@dataclass
class Simulated:
    """A server without a device: requests of one row, batches that take the time they cost."""

    lengths: Sequence[int]
    admission: Admission = field(default_factory=lambda: Admission(Amount(ROWS, 10**6, 10**6), client_share=0.5))
    waits_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def run(self, arrivals: list[tuple[float, str]], rng: random.Random) -> None:
        """Serve requests that come at these times from these callers."""
        heapq.heapify(arrivals)
        waiting: dict[Waiting, tuple[float, Reservation]] = {}
        turns = Turns()
        while arrivals or waiting:
            if not waiting:
                self.seconds, turns = max(self.seconds, arrivals[0][0]), Turns()
            while arrivals and arrivals[0][0] <= self.seconds:
                at, caller = heapq.heappop(arrivals)
                row = Waiting(rng.choice(self.lengths), Request(caller, "map"))
                try:
                    waiting[row] = at, self.admission.reserve(caller, Amount(1, row.tokens), now=self.seconds)
                except QueueFullError:
                    self.refused[caller] += 1
            rows = list(waiting)
            chosen, turns = next_batch(rows, turns, token_budget=BUDGET)
            batch = [rows[i] for i in chosen]
            self.seconds += BATCH_S + TOKEN_S * padded_tokens([row.tokens for row in batch])
            for row in batch:
                at, reservation = waiting.pop(row)
                self.admission.close(reservation)
                self.waits_s[row.request.caller].append(self.seconds - at)

    def quantile(self, callers: Collection[str] = ()) -> float:
        """Return the 99th percentile of some callers' waits, of all by default, over the time of a full queue."""
        answered = sum(map(len, self.waits_s.values()))
        waits = sorted(wait for caller in callers or self.waits_s for wait in self.waits_s[caller])
        return waits[int(0.99 * len(waits))] / (ROWS / (answered / self.seconds))


def poisson(per_s: float, seconds: float, callers: Sequence[str], rng: random.Random) -> list[tuple[float, str]]:
    now, arrivals = 0.0, []
    while (now := now + rng.expovariate(per_s)) < seconds:
        arrivals.append((now, rng.choice(callers)))
    return arrivals


def reviews(rng: random.Random) -> list[int]:
    """As SST-2 has them in the prompt: 13 to 36 tokens."""
    return [rng.randint(13, 36) for _ in range(400)]


def anything(rng: random.Random) -> list[int]:
    """Many short texts, few of ten times their length."""
    return [min(250, int(15 + rng.lognormvariate(2.7, 0.8))) for _ in range(400)]


#: Kinds of texts, and twice what is answered of them in a second.
KINDS = pytest.mark.parametrize(("texts", "per_s"), [(reviews, 70.0), (anything, 48.0)])


@KINDS
@pytest.mark.parametrize("callers", [1, 8])
def test_99_of_100_wait_no_longer_than_a_full_queue_takes_and_half_as_long(
    texts: Callable[[random.Random], list[int]], per_s: float, callers: int
) -> None:
    rng = random.Random(callers)
    simulated = Simulated(texts(rng))
    simulated.run(poisson(per_s, 200.0, [f"caller {i}" for i in range(callers)], rng), rng)
    assert sum(simulated.refused.values()) > 1000
    assert simulated.quantile() <= 1.5
    answered = [len(waits) for waits in simulated.waits_s.values()]
    assert max(answered) <= 1.15 * min(answered)


@KINDS
def test_a_caller_that_asks_for_all_waits_for_its_turns_and_keeps_nobody_waiting(
    texts: Callable[[random.Random], list[int]], per_s: float
) -> None:
    """Nearly every batch begins with a row of somebody else, whose length is not that of the row that waits longest."""
    rng = random.Random(0)
    simulated = Simulated(texts(rng))
    light = [f"caller {i}" for i in range(7)]
    arrivals = [*poisson(per_s, 200.0, ["greedy"], rng), *poisson(per_s / 10, 200.0, light, rng)]
    simulated.run(arrivals, rng)
    assert simulated.refused["greedy"] == simulated.refused.total() > 1000
    assert simulated.quantile() <= 2.5
    assert simulated.quantile(light) <= 0.4
