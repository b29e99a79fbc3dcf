"""Twice the capacity, by simulation: how long do those wait that are let in? Real admission and turns, no device."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
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
    waits_of: list[tuple[str, float]] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
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
                    waiting[row] = at, self.admission.reserve(caller, Amount(1, row.tokens))
                except QueueFullError:
                    self.refused[caller] += 1
            rows = list(waiting)
            chosen, turns = next_batch(rows, turns, token_budget=BUDGET)
            batch = [rows[i] for i in chosen]
            self.seconds += BATCH_S + TOKEN_S * padded_tokens([row.tokens for row in batch])
            for row in batch:
                at, reservation = waiting.pop(row)
                self.admission.close(reservation)
                self.waits_of.append((row.request.caller, self.seconds - at))
                self.answered[row.request.caller] += 1

    @property
    def emptying_s(self) -> float:
        """Seconds that a full queue takes."""
        return ROWS / (sum(self.answered.values()) / self.seconds)

    def quantile(self, share: float) -> float:
        waits = sorted(wait for _, wait in self.waits_of)
        return waits[int(share * len(waits))]


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
    assert simulated.quantile(0.99) <= 1.5 * simulated.emptying_s
    fewest, most = min(simulated.answered.values()), max(simulated.answered.values())
    assert most <= 1.15 * fewest


@KINDS
def test_a_caller_that_asks_for_all_waits_for_its_turns_and_keeps_nobody_waiting(
    texts: Callable[[random.Random], list[int]], per_s: float
) -> None:
    """Nearly every batch begins with a row of somebody else, whose length is not that of the row that waits longest."""
    rng = random.Random(0)
    simulated = Simulated(texts(rng))
    light = poisson(per_s / 10, 200.0, [f"caller {i}" for i in range(7)], rng)
    simulated.run([*poisson(per_s, 200.0, ["greedy"], rng), *light], rng)
    assert simulated.refused["greedy"] > 1000
    assert not sum(count for caller, count in simulated.refused.items() if caller != "greedy")
    assert simulated.quantile(0.99) <= 2.5 * simulated.emptying_s
    waits = sorted(wait for caller, wait in simulated.waits_of if caller != "greedy")
    assert waits[int(0.99 * len(waits))] <= 0.4 * simulated.emptying_s
