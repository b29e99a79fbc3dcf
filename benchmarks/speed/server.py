"""The server over HTTP against the same engine called in process, by closed-loop clients; and past its capacity.

A closed-loop client sends its next request when it has the answer to the last. Clients, server and engine share this
machine, so what the clients themselves cost counts against the server.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from benchmarks.speed.process import served
from benchmarks.speed.record import Conditions, Record
from benchmarks.speed.subject import ARTIFACT
from benchmarks.speed.timing import Ratio
from laplora.predictor import Predictor
from service.engine import Ask, Engine

WORDS = (
    "the plot makes no sense at all and the two leads have nothing to say",
    "a warm and funny film strangely hollow but well played",
)
#: Padded tokens of a batch, and most rows that wait, in both.
BATCH_TOKENS, QUEUE_ROWS = 512, 2048
#: A queue that the load past capacity fills; the load is one caller's.
SHORT_QUEUE_ROWS = 32
SHORT_QUEUE = ("--max-queue-rows", str(SHORT_QUEUE_ROWS), "--max-inputs", str(SHORT_QUEUE_ROWS), "--client-share", "1")


def sentences(count: int) -> list[str]:
    """Return sentences of 5 to 30 words."""
    draw = random.Random(0)
    words = " ".join(WORDS).split()
    return [" ".join(draw.choices(words, k=draw.randint(5, 30))) for _ in range(count)]


def request_of(text: str) -> dict[str, Any]:
    """Return the request body of one text."""
    return {"inputs": [{"text": text}], "options": {"predictive": "laplace"}}


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield throughput over the engine's by clients, what one request costs more, and what comes past capacity."""
    seconds, turns = (6.0, 2) if quick else (8.0, 3)
    texts = sentences(512)
    with served(["--batch-tokens", str(BATCH_TOKENS)]) as address, in_process() as ask, clients(address) as post:
        for concurrency in (1, 32) if quick else (1, 8, 32, 128):
            found: dict[str, list[Load]] = {"http": [], "engine": []}
            for turn in range(turns + 1):
                for name, function in (("engine", ask), ("http", post)):
                    load = closed_loop(function, texts, concurrency, seconds if turn else 2.0)
                    if turn:
                        found[name].append(load)
            ratios = [h.per_second / e.per_second for h, e in zip(found["http"], found["engine"], strict=True)]
            yield conditions.record(
                f"server: throughput, {concurrency} clients",
                Ratio(statistics.median(ratios), min(ratios), max(ratios)),
                "the engine in process",
                limit=0.92 if concurrency == 32 else None,
                side="at least",
            )
            if concurrency == 1:
                over = [1000 * (h.median_s - e.median_s) for h, e in zip(found["http"], found["engine"], strict=True)]
                yield conditions.record(
                    "server: overhead of one request",
                    Ratio(statistics.median(over), min(over), max(over)),
                    "ms",
                    limit=5.0,
                )
    yield from past_capacity(conditions, texts, seconds)


class Load:
    """What closed-loop clients saw: answers a second, and their latencies in seconds."""

    def __init__(self, latencies: list[float], seconds: float) -> None:
        self.per_second = len(latencies) / seconds
        self.median_s = statistics.median(latencies)
        self.latencies = sorted(latencies)

    def quantile(self, share: float) -> float:
        """Return a quantile of the latencies, seconds."""
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


def closed_loop(function: Callable[[str], Any], texts: list[str], concurrency: int, seconds: float) -> Load:
    """Return what this many clients see for this long."""
    latencies: list[float] = []
    begun = time.perf_counter()
    errors: list[BaseException] = []

    def client(number: int) -> None:
        position = number
        try:
            while (now := time.perf_counter()) - begun < seconds:
                function(texts[position % len(texts)])
                latencies.append(time.perf_counter() - now)
                position += concurrency
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return Load(latencies, time.perf_counter() - begun)


@contextmanager
def in_process() -> Iterator[Callable[[str], Any]]:
    """Yield a function that asks the engine of this process for a text's answer."""
    engine = Engine(token_budget=BATCH_TOKENS, max_queue_tokens=1 << 20, max_queue_rows=QUEUE_ROWS)
    engine.start()
    # Where two threads of a process have run torch, OpenMP has more workers than cores, and all of them are slower.
    predictor = engine.call(lambda: Predictor.load(ARTIFACT)).result()

    def ask(text: str) -> Any:
        row = predictor.encode({"text": text}, truncate=True)
        return engine.submit(predictor, [row], ask=Ask("laplace"), deadline=float("inf")).future.result()

    try:
        yield ask
    finally:
        engine.stop(join_timeout_s=60)


@contextmanager
def clients(address: str) -> Iterator[Callable[[str], Any]]:
    """Yield a function that posts a text to the server, each thread on its own connection."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    with httpx.Client(base_url=address, timeout=None, limits=limits) as client:

        def post(text: str) -> Any:
            reply = client.post("/predict", json=request_of(text))
            reply.raise_for_status()
            return reply

        yield post


def past_capacity(conditions: Conditions, texts: list[str], seconds: float) -> Iterator[Record]:
    """Yield the latencies of accepted and refused requests when twice as many come as can be answered."""
    with (
        served(["--batch-tokens", str(BATCH_TOKENS), *SHORT_QUEUE]) as address,
        clients(address) as post,
        httpx.Client(base_url=address, timeout=None, limits=httpx.Limits(max_connections=None)) as client,
    ):
        capacity = closed_loop(post, texts, 16, seconds).per_second
        accepted: list[float] = []
        refused: list[float] = []

        def one(text: str) -> None:
            begun = time.perf_counter()
            status = client.post(
                "/predict", json={"inputs": [{"text": text}], "options": {"predictive": "laplace"}}
            ).status_code
            (accepted if status == 200 else refused).append(time.perf_counter() - begun)
            if status not in (200, 429):
                raise RuntimeError(f"the server answered {status}")

        threads = []
        begun = time.perf_counter()
        for i in range(int(2 * capacity * seconds)):
            time.sleep(max(0.0, begun + i / (2 * capacity) - time.perf_counter()))
            threads.append(threading.Thread(target=one, args=(texts[i % len(texts)],)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    # A full queue and the batch before it: what a request that is let in can have to wait for.
    bound = (SHORT_QUEUE_ROWS + 2 * BATCH_TOKENS / 32) / capacity
    late = Load(accepted, 1.0).quantile(0.99) / bound
    yield conditions.record(
        "server: twice capacity, 99th percentile of the accepted",
        Ratio(late, late, late),
        "the time to empty a full queue",
        limit=1.5,
    )
    if refused:
        waited = Load(refused, 1.0)
        yield conditions.record(
            "server: twice capacity, median refusal",
            Ratio(*(1000 * waited.quantile(q) for q in (0.5, 0.05, 0.95))),
            "ms",
            limit=10.0,
        )
