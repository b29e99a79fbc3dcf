"""The server over HTTP against the same engine called in process, by closed-loop clients.

A client sends its next request when it has the answer to the last. Clients, server and engine share this machine, so
what the clients cost counts against the server. Past its capacity: ``overload``.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx

from benchmarks.harness.process import served
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import ARTIFACT
from benchmarks.harness.timing import spread
from laplora.predictor import Predictor
from service.scoring.admission import Amount
from service.scoring.device import Device
from service.scoring.entry import Entry
from service.scoring.queue import Queue
from service.scoring.ticket import Ask, Ticket

WORDS = (
    "the plot makes no sense at all and the two leads have nothing to say",
    "a warm and funny film strangely hollow but well played",
)
#: Padded tokens of a batch, and most rows that wait, in both.
BATCH_TOKENS, QUEUE_ROWS = 512, 2048


def sentences(count: int) -> list[str]:
    """Return sentences of 5 to 30 words."""
    draw = random.Random(0)
    words = " ".join(WORDS).split()
    return [" ".join(draw.choices(words, k=draw.randint(5, 30))) for _ in range(count)]


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield throughput over the engine's by clients, and what one request costs more."""
    seconds, turns = (6.0, 2) if quick else (8.0, 3)
    texts = sentences(512)
    with served(["--batch-tokens", str(BATCH_TOKENS)]) as address, in_process() as ask, clients(address) as post:
        functions = {"engine": ask, "http": lambda text: post(text, predictive="laplace")}
        for concurrency in (1, 32) if quick else (1, 8, 32, 128):
            loads: dict[str, list[Load]] = {name: [] for name in functions}
            for turn in range(turns + 1):
                for name, function in functions.items():
                    load = closed_loop(function, texts, concurrency, seconds if turn else 2.0)
                    if turn:
                        loads[name].append(load)
            pairs = list(zip(loads["http"], loads["engine"], strict=True))
            yield conditions.record(
                f"server: throughput, {concurrency} clients",
                spread([http.per_second / engine.per_second for http, engine in pairs]),
                "the engine in process",
                limit=0.92 if concurrency == 32 else None,
                side="at least",
            )
            if concurrency == 1:
                over = spread([1000 * (http.median_s - engine.median_s) for http, engine in pairs])
                yield conditions.record("server: overhead of one request", over, "ms", limit=5.0)


class Load(NamedTuple):
    """The view of closed-loop clients: answers a second, and their median latency in seconds."""

    per_second: float
    median_s: float


def closed_loop(function: Callable[[str], Any], texts: list[str], concurrency: int, seconds: float) -> Load:
    """Return what this many clients see for this long."""
    begun = time.perf_counter()

    def client(number: int) -> list[float]:
        latencies: list[float] = []
        for position in itertools.count(number, concurrency):
            if (now := time.perf_counter()) - begun >= seconds:
                break
            function(texts[position % len(texts)])
            latencies.append(time.perf_counter() - now)
        return latencies

    with ThreadPoolExecutor(concurrency) as pool:
        latencies = [latency for of_one in pool.map(client, range(concurrency)) for latency in of_one]
    return Load(len(latencies) / (time.perf_counter() - begun), statistics.median(latencies))


@contextmanager
def in_process() -> Iterator[Callable[[str], Any]]:
    """Yield a function that asks the engine of this process for a text's answer."""
    queue = Queue(Amount(QUEUE_ROWS, 1 << 20, 0))
    device = Device(queue, token_budget=BATCH_TOKENS)
    device.start()
    # If two threads of a process have run torch, OpenMP has more workers than cores, and all of them are slower.
    predictor = device.call(lambda: Predictor.load(ARTIFACT)).result()

    def ask(text: str) -> Any:
        row = predictor.encode({"text": text}, truncate=True)
        entry, ticket = Entry(caller=""), Ticket("", (row,), (0,), Ask("laplace"), caller="")
        queue.enter(entry, Amount(1, ticket.tokens), fewest_tokens=ticket.tokens, now=time.monotonic())
        queue.put(entry, ticket, predictor, now=time.monotonic())
        return entry.future.result()

    try:
        yield ask
    finally:
        device.stop(join_timeout_s=60)


@contextmanager
def clients(address: str) -> Iterator[Callable[..., Any]]:
    """Yield a function that returns the server's answer to a text and options, each thread on its own connection."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    with httpx.Client(base_url=address, timeout=None, limits=limits) as client:

        def post(text: str, **options: str) -> Any:
            reply = client.post("/predict", json={"inputs": [{"text": text}], "options": options})
            reply.raise_for_status()
            return reply.json()["predictions"][0]

        yield post
