"""Rows of the data sets, each in the files that its authors publish, as ``laplora.fit`` takes them."""

from __future__ import annotations

import csv
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import load_config
from training.data.section import load_splits

SST2 = Path(__file__).parents[2] / "training" / "configs" / "sst2-smollm2.yaml"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """A task's labels and rows; the splits share no row.

    Attributes:
        pretraining: rows of no other split, for the encoder that has no pretraining of its own.
    """

    labels: tuple[str, ...]
    train: Sequence[Row]
    calibration: Sequence[Row]
    test: Sequence[Row]
    pretraining: Sequence[Row] = ()


def sst2(_: Path) -> Rows:
    """Return SST-2's validation rows, from the offline data of ``python -m training``: two labels."""
    splits = load_splits(load_config(SST2).data, seed=0)
    labels = splits.task.labels
    parts = (
        [{"text": e.fields["text"], "label": labels[e.label]} for e in part]
        for part in (splits.train, splits.calibration, splits.test)
    )
    train, calibration, test = parts
    return Rows(labels, train[:240], calibration[:120], test[:200])


def trec(folder: Path) -> Rows:
    """Return TREC's questions, ``trec/train.txt`` and ``trec/test.txt``: six coarse labels."""
    train, test = (
        [
            {"text": text.strip(), "label": tag.partition(":")[0]}
            for tag, _, text in (line.partition(" ") for line in _lines(folder / "trec" / f"{split}.txt"))
        ]
        for split in ("train", "test")
    )
    train = _unseen(train, test)
    random.Random(0).shuffle(train)
    labels = tuple(sorted({row["label"] for row in train}))
    return Rows(labels, train[:900], train[900:1200], test, train[1200:3700])


def banking77(folder: Path) -> Rows:
    """Return Banking77's questions, ``banking77/train.csv`` and ``test.csv``: 77 labels, 30 training rows of each."""
    train, test = (_banking(folder, split) for split in ("train", "test"))
    return _of_each_label(train, test, 30, 10, 1000)


def clinc150(folder: Path) -> Rows:
    """Return CLINC150's queries in scope, ``clinc150/data_full.json``: 150 labels, 12 training rows of each."""
    splits = json.loads((folder / "clinc150" / "data_full.json").read_text())
    train, test = ([{"text": text, "label": label} for text, label in splits[name]] for name in ("train", "test"))
    return _of_each_label(train, test, 12, 4, 600)


def clinc_domains(folder: Path) -> Rows:
    """Return one to three of CLINC150's queries in a row; its labels are their domains, of ten."""
    splits = json.loads((folder / "clinc150" / "data_full.json").read_text())
    intents = json.loads((folder / "clinc150" / "domains.json").read_text())
    domain = {intent: name for name, of_domain in intents.items() for intent in of_domain}
    drawn = []
    for seed, (split, count) in enumerate((("train", 1200), ("val", 300), ("test", 500))):
        draw = random.Random(seed)
        rows = []
        for _ in range(count):
            queries = draw.sample(splits[split], draw.choice((1, 2, 3)))
            labels = sorted({domain[intent] for _, intent in queries})
            rows.append({"text": " . ".join(text for text, _ in queries), "label": labels})
        drawn.append(rows)
    return Rows(tuple(sorted(intents)), *drawn)


def _of_each_label(train: Sequence[Row], test: Sequence[Row], count: int, calibration: int, tested: int) -> Rows:
    """Return as many rows of each label for training and for calibration, and a random part of the test rows."""
    draw = random.Random(0)
    by_label = defaultdict(list)
    for row in _unseen(train, test):
        by_label[row["label"]].append(row)
    parts: tuple[list[Row], list[Row]] = ([], [])
    for label in sorted(by_label):
        rows = draw.sample(by_label[label], min(count + calibration, len(by_label[label])))
        parts[0].extend(rows[:count])
        parts[1].extend(rows[count:])
    return Rows(tuple(sorted(by_label)), *parts, draw.sample(test, tested))


def _unseen(train: Sequence[Row], test: Sequence[Row]) -> list[Row]:
    """Return the rows whose text is neither among the test rows nor in an earlier row."""
    seen = {row["text"] for row in test}
    return [row for row in train if not (row["text"] in seen or seen.add(row["text"]))]  # type: ignore[func-returns-value]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="latin-1").splitlines() if line.strip()]


def _banking(folder: Path, split: str) -> list[Row]:
    with (folder / "banking77" / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        return [{"text": r["text"].strip(), "label": r["category"]} for r in csv.DictReader(file)]
