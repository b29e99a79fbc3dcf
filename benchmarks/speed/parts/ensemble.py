"""The adapters of an ensemble side by side in one pass, against one pass after the other, and against a MAP answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import Format, load_subject, random_batch
from benchmarks.harness.timing import in_turns, ratio
from laplora.predictive.member_adapters import in_place
from laplora.predictive.member_outputs import Member, MemberSet, member_outputs
from laplora.prompts.rows import Batch

MEMBERS = (3, 5, 10)
#: Number format and rows; the default artifact's format is bfloat16.
SIZES: tuple[tuple[Format, int], ...] = (("bfloat16", 1), ("float32", 1), ("bfloat16", 16))
TOKENS = 16


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield both costs of each size, in seconds of the processor, which a busy machine does not change much."""
    for number_format, rows in SIZES[:1] if quick else SIZES:
        plain = load_subject(number_format)
        batch = random_batch(plain, rows, TOKENS, padded=True)
        for count in MEMBERS:
            members = ensemble_of(plain, count)
            functions = {
                "map": lambda m=plain, b=batch: member_outputs(m, b, ()),
                "in turn": lambda m=members, b=batch: in_turn(m, b),
                "side by side": lambda m=members, b=batch: member_outputs(m, b, {("checkpoints", False)}),
            }
            times = in_turns(functions, 2 if rows > 1 else 5, time.process_time)
            for to, baseline in (("in turn", "one pass after the other"), ("map", "a MAP answer")):
                title = f"ensemble: {number_format}, {count} members to {to}, {rows} x {TOKENS} tokens"
                yield conditions.record(title, ratio(times, "side by side", to), baseline)


def ensemble_of(members: MemberSet, count: int) -> MemberSet:
    """Return the members with an ensemble of so many adapters, the trained one and random ones near it."""
    draw = torch.Generator().manual_seed(0)
    near = [
        {
            name: (p + 0.01 * torch.randn(p.shape, generator=draw).to(p)).detach()
            for name, p in members.parameters.items()
        }
        for _ in range(count - 1)
    ]
    return replace(members, checkpoints=tuple(map(Member, near)))


@torch.no_grad()
def in_turn(members: MemberSet, batch: Batch) -> list[torch.Tensor]:
    """Return the logits of the ensemble's adapters (batch, classes), each put in place for a pass of its own."""
    logits = []
    for member in (members.trained, *members.checkpoints):
        with in_place(members.parameters, member.weights):
            logits.append(members.readout.scores(members.model, batch).logits)
    return logits
