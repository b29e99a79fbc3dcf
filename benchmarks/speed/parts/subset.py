"""A posterior over ``lora_B`` of the values alone, against one over the whole adapter: answers and file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import load_subject, random_batch, with_classes
from benchmarks.harness.timing import exactly, in_turns, ratio
from benchmarks.speed.parts.fit import fit
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.file import posterior_tensors
from laplora.posterior.subset import select_blocks
from laplora.predictive.member_outputs import Member, MemberSet, member_outputs
from laplora.prompts.rows import Batch

SUBSETS = ("all", "values_b")
ROWS, TOKENS = 8, 64


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the cost of an answer under each posterior, joint cores of equal rank, and the sizes of their files."""
    plain = load_subject("bfloat16")
    posteriors = {subset: with_posterior(plain, subset) for subset in SUBSETS}
    for classes in (2, 4):
        members = {name: with_classes(one, classes) for name, one in posteriors.items()}
        batch = random_batch(members["all"], ROWS, TOKENS, padded=True)
        functions = {"map": lambda m=members["all"], b=batch: member_outputs(m, b, ())} | {
            name: lambda m=one, b=batch: member_outputs(m, b, {("single", True)}) for name, one in members.items()
        }
        times = in_turns(functions, 5 if quick else 9)
        for name, to, baseline in (
            ("all", "map", "a MAP answer"),
            ("values_b", "map", "a MAP answer"),
            ("values_b", "all", "an answer under the whole posterior"),
        ):
            title = f"subset: {name} to {to}, {classes} classes, {ROWS} x {TOKENS} tokens"
            yield conditions.record(title, ratio(times, name, to), baseline)
    for name, one in posteriors.items():
        yield conditions.record(f"subset: posterior file, {name}", exactly(stored_bytes(one) / 1e6), "MB")


def with_posterior(members: MemberSet, subset: str = "all", batches: Sequence[Batch] = (), **options: Any) -> MemberSet:
    """Return the members with a joint core over a subset of the adapter's matrices, fitted on few rows by default."""
    device = next(members.model.parameters()).device
    blocks = select_blocks(find_blocks(members.model, members.readout.class_count), subset)
    posterior = fit(members, blocks, list(batches) or [random_batch(members, ROWS, TOKENS)], "joint_core", **options)
    precisions = block_precisions(Prior("scalar", {"all": 1.0}), blocks).to(device)
    return replace(members, trained=Member(posterior.to(device, torch.float32), precisions))


def stored_bytes(members: MemberSet) -> int:
    """Return the bytes of the posterior's tensors as an artifact stores them."""
    posterior = members.trained.posterior
    assert posterior is not None
    tensors, _ = posterior_tensors(posterior, "float32")
    return sum(t.nbytes for t in tensors.values())
