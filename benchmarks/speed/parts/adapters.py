"""Several adapters side by side in one pass, against one pass after the other, and against a MAP answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import Format, load_subject, random_batch
from benchmarks.harness.timing import in_turns, ratio
from laplora.predictive.member_adapters import Weights, in_place
from laplora.predictive.member_outputs import MemberSet, member_outputs
from laplora.predictive.several_adapters import adapters_logits
from laplora.prompts.rows import Batch

ADAPTERS = (3, 5, 10)
#: Number format and rows; the default artifact's format is bfloat16.
SIZES: tuple[tuple[Format, int], ...] = (("bfloat16", 1), ("float32", 1), ("bfloat16", 16))
TOKENS = 16


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield both costs of each size, in seconds of the processor, which a busy machine does not change much."""
    for number_format, rows in SIZES[:1] if quick else SIZES:
        subject = load_subject(number_format)
        batch = random_batch(subject, rows, TOKENS, padded=True)
        for count in ADAPTERS:
            near = adapters_near(subject, count)
            functions = {
                "map": lambda s=subject, b=batch: member_outputs(s, b, ()),
                "in turn": lambda s=subject, n=near, b=batch: in_turn(s, n, b),
                "side by side": lambda s=subject, n=near, b=batch: adapters_logits(s.model, s.readout, n, b),
            }
            times = in_turns(functions, 2 if rows > 1 else 5, time.process_time)
            for to, baseline in (("in turn", "one pass after the other"), ("map", "a MAP answer")):
                title = f"adapters: {number_format}, {count} side by side to {to}, {rows} x {TOKENS} tokens"
                yield conditions.record(title, ratio(times, "side by side", to), baseline)


def adapters_near(subject: MemberSet, count: int) -> list[Weights]:
    """Return so many adapters: the trained one, and random ones near it."""
    draw = torch.Generator().manual_seed(0)
    return [
        {},
        *(
            {
                name: (p + 0.01 * torch.randn(p.shape, generator=draw).to(p)).detach()
                for name, p in subject.parameters.items()
            }
            for _ in range(count - 1)
        ),
    ]


@torch.no_grad()
def in_turn(subject: MemberSet, adapters: Sequence[Weights], batch: Batch) -> torch.Tensor:
    """Return the logits of the adapters (adapters, batch, classes), each put in place for a pass of its own."""
    logits = []
    for weights in adapters:
        with in_place(subject.parameters, weights):
            logits.append(subject.readout.scores(subject.model, batch).logits)
    return torch.stack(logits)
