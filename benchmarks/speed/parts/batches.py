"""What larger batches gain: rows of one length, answered in batches of so many padded tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import load_subject, random_batch
from benchmarks.harness.timing import Ratio, in_turns, spread
from laplora.predictive.member_outputs import Wanted, member_outputs
from service.artifacts.token_budget import CPU_BATCH_TOKENS

TOKENS = 32
MODES: dict[str, set[Wanted]] = {"map": set(), "laplace": {("single", True)}}
#: Padded tokens of a batch.
SIZES = (64, 128, 256, 512, 1024, 2048)


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield what a token takes in a batch of each size, over one in a batch of the server's on a CPU."""
    members = load_subject("bfloat16")
    batches = {size: random_batch(members, size // TOKENS, TOKENS, padded=True) for size in SIZES}
    for mode, wanted in MODES.items():
        functions = {
            str(size): lambda b=batch, w=wanted: member_outputs(members, b, w) for size, batch in batches.items()
        }
        times = in_turns(functions, 1 if quick else 5, time.process_time)
        for size in SIZES:
            if size != CPU_BATCH_TOKENS:
                baseline = f"a token in a batch of {CPU_BATCH_TOKENS}"
                yield conditions.record(f"batches: {mode}, {size} tokens", _per_token(times, size), baseline)


def _per_token(times: dict[str, list[float]], size: int) -> Ratio:
    usual = times[str(CPU_BATCH_TOKENS)]
    return spread([a / size / (b / CPU_BATCH_TOKENS) for a, b in zip(times[str(size)], usual, strict=True)])
