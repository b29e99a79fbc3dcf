"""What the database has of a row's numbers: to the last bit, in no more room than the upload was told."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from serving import FakePredictor
from stored_jobs import claimed, new_job

from laplora.answers.evaluation import method_scores
from laplora.answers.labels import LabelNames
from laplora.answers.written import written_answer
from laplora.decisions.thresholds import FLAGS
from service.jobs.reading.measuring import Measuring
from service.jobs.store.database import Database
from service.jobs.store.job_tables import JobTables, answer_bytes
from service.jobs.store.numbers import kept_answer, kept_rows, read_answer, row_bytes, scores_of
from service.jobs.store.records import ScoredRow, Sums, compact

TINY = 2.2250738585072014e-308


def scored(labels: LabelNames, count: int) -> list[ScoredRow]:
    """Return fresh rows with the longest answers."""
    names, draw = labels.names, torch.Generator().manual_seed(0)
    probs = torch.rand((count, len(names)), generator=draw, dtype=torch.float64)
    probs = (probs if labels.several else probs / probs.sum(1, keepdim=True)).tolist()
    rows = []
    for row in range(count):
        by_label = dict(zip(names, probs[row], strict=True))
        written: dict[str, Any] = {
            "label": names[-1], "label_text": "private", "answered_by": "laplace" * 8,
            "map_probs": by_label, "probs": by_label, "probs_std": None if row else dict.fromkeys(names, TINY),
            "calibrated_probs": {}, "logit_mean": [], "logit_variance": None,
            "uncertainty": dict.fromkeys(("total", "aleatoric", "epistemic"), -TINY), "label_mass": TINY,
            "decision_reason": "why",
            "familiarity": TINY, "score": -TINY, "prediction_set": list(names), "flags": list(FLAGS),
            "decision": "review", "tokens": 10**9, "truncated": False,
        }  # fmt: skip
        written |= {"labels": list(names)} if labels.several else {}
        score: Any = [-TINY] * len(names) if labels.several else 0.25
        methods = {"map": (probs[row], None), "laplace": (probs[row], score)}
        truth = tuple(range(len(names))) if labels.several else row % len(names)
        rows.append(ScoredRow(row, truth, methods, False, kept_answer(written), written))
    return rows


@pytest.mark.parametrize("several", [False, True])
def test_numbers_are_kept_to_the_last_bit_in_the_room_that_was_told(several: bool) -> None:
    labels = LabelNames(tuple(f'l\u00e4bel " {i}' for i in range(40)), several)
    fresh = scored(labels, 7)
    kept = kept_rows(fresh, labels)
    told = row_bytes(labels, ("map", "laplace"), keep_rows=True)[True]
    assert told / 2 < answer_bytes(kept) / len(kept) <= told
    for name in ("map", "laplace"):
        truths: list[Any] = [row.truth for row in fresh]
        direct = method_scores([row.methods[name] for row in fresh], truths, labels)
        rows = [row._replace(methods=json.loads(compact(row.methods))) for row in kept]
        for got, number in zip(scores_of(rows, name, ("map", "laplace"), labels), direct, strict=True):
            torch.testing.assert_close(got, number, rtol=0, atol=0)
    left_out = {"label_text", "decision_reason", "calibrated_probs", "logit_mean", "logit_variance"}
    fake = FakePredictor()
    (answer,) = fake.predict([fake.row(5)])
    assert set(written_answer(answer, {})) <= set(fresh[0].written or {}), "what this knows no longest value of"
    for row in fresh:
        written = {name: value for name, value in (row.written or {}).items() if name not in left_out}
        assert read_answer(row.answer or "", labels.names) == written


def test_a_job_takes_the_disk_that_was_told_and_its_result_the_memory_of_a_few_numbers_a_row(tmp_path: Path) -> None:
    """Not one of each label, of which there are 150."""
    labels = LabelNames(tuple(f"label {i}" for i in range(150)))
    store, rows, sums = JobTables(Database.in_file(tmp_path / "jobs.sqlite")), scored(labels, 200), Sums()
    job = new_job(rows=4000, labels=labels.names)
    job.number = claimed(store, job)
    for first in range(0, 4000, 200):
        some = [row._replace(row=first + row.row) for row in rows]
        sums = sums.plus(some, labels=labels, bins=15)
        new: dict[str, Any] = {"scored": kept_rows(some, labels), "bad": {}, "sums": sums}
        store.add_rows(job.number, (first, first + 200), fence=1, input_offset=0, started_at=1e9, **new)
    job.sums, job.about.options.resamples = sums, 10
    store.database.empty_log()
    assert (tmp_path / "jobs.sqlite").stat().st_size < 4000 * row_bytes(labels, rows[0].methods, keep_rows=True)[True]

    async def in_database(work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)

    ledger: Any = SimpleNamespace(disk=SimpleNamespace(tables=store, in_database=in_database))
    tracemalloc.start()
    try:
        result = json.loads(asyncio.run(Measuring(ledger).result(job)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        store.close()
    assert result["rows"] == 4000
    assert peak < 4000 * 150 * 8
