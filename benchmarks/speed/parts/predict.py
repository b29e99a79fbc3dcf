"""A Laplace answer against a MAP answer of the same engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import Format, load_subject, random_batch, with_classes
from benchmarks.harness.timing import in_turns, ratio
from laplora.predictive.batch_outputs import AdaptedModel, batch_outputs


class Case(NamedTuple):
    """One size of work."""

    number_format: Format
    classes: int
    rows: int
    tokens: int


QUICK = (
    Case("bfloat16", 2, 8, 32),
    Case("bfloat16", 2, 8, 128),
    Case("bfloat16", 4, 8, 32),
    Case("float32", 2, 8, 32),
    Case("nf4", 2, 8, 32),
)
#: One thing varied at a time.
FULL = (
    *(Case("bfloat16", 2, rows, tokens) for rows in (1, 8, 32) for tokens in (32, 64, 128, 256)),
    *(Case("bfloat16", classes, rows, 64) for classes in (4, 5, 10) for rows in (1, 8)),
    *(Case("float32", 2, rows, tokens) for rows in (1, 8) for tokens in (32, 128)),
    *(Case("nf4", 2, rows, tokens) for rows in (1, 8) for tokens in (32, 128)),
    *(Case("nf4", classes, 8, 32) for classes in (4, 10)),
)


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield a record per case.

    One forward and C - 1 backward passes of activations cost C forwards; a tenth is allowed on top, from batch 8 on.
    """
    loaded: tuple[Format, AdaptedModel] | None = None
    for case in QUICK if quick else FULL:
        if loaded is None or loaded[0] != case.number_format:
            loaded = case.number_format, load_subject(case.number_format)
        adapted = with_classes(loaded[1], case.classes)
        batch = random_batch(adapted, case.rows, case.tokens, padded=True)
        functions = {
            "map": lambda m=adapted, b=batch: batch_outputs(m, b, covariance=False),
            "laplace": lambda m=adapted, b=batch: batch_outputs(m, b, covariance=True),
        }
        times = in_turns(functions, 5 if case.rows * case.tokens * case.classes <= 4096 else 3)
        yield conditions.record(
            f"predict: {case.number_format}, {case.classes} classes, {case.rows} x {case.tokens} tokens",
            ratio(times, "laplace", "map"),
            "a MAP answer",
            limit=1.1 * case.classes if case.rows >= 8 else None,
        )
