"""Splits are disjoint, deduplicated, seeded and counted; what cannot work is refused at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laplora.data.labelled import Task
from laplora.errors import DataError
from laplora.prompts.examples import Example
from laplora.prompts.templates import TEMPLATES
from training.data.examples import Pool, Role, Source
from training.data.splitting import split, with_selection, without_long_prompts

TASK = Task("toy", TEMPLATES["sentiment"], ("negative", "positive"))
ALL: tuple[Role, ...] = ("train", "calibration", "test")


def rows(texts: Sequence[str], *, prefix: str = "r", label: int | None = None) -> tuple[Example, ...]:
    return tuple(
        Example(f"{prefix}{i}", {"text": t}, i % 2 if label is None else label, 2) for i, t in enumerate(texts)
    )


def source(*pools: Pool) -> Source:
    return Source(TASK, pools, "file", "toy")


def one_pool(count: int) -> Source:
    return source(Pool("toy rows", rows([f"text {i}" for i in range(count)]), ALL))


def counts(train: int | None = None, calibration: int | None = None, test: int | None = None) -> dict[Role, int | None]:
    return {"train": train, "calibration": calibration, "test": test}


@given(st.integers(8, 60), st.integers(0, 2**32))
def test_splits_are_disjoint_complete_and_repeatable(count: int, seed: int) -> None:
    splits = split(one_pool(count), counts(), seed=seed)
    ids = [[e.id for e in part] for part in (splits.train, splits.calibration, splits.test)]
    assert len({i for part in ids for i in part}) == count == sum(len(part) for part in ids)
    assert all(ids)
    again = split(one_pool(count), counts(), seed=seed)
    assert (again.train, again.calibration, again.test) == (splits.train, splits.calibration, splits.test)


@given(st.integers(0, 2**32), st.booleans())
def test_no_split_parts_a_group(seed: int, stratify: bool) -> None:
    """Also not where equal prompts link two groups, or files of their own have some of its rows."""
    given = [replace(e, group=f"thread {i % 9}" if i % 4 else None) for i, e in enumerate(rows([*"abcdefghijklmnop"]))]
    given.append(replace(given[1], id="twin", group="thread 2"))  # links the threads 1 and 2
    splits = split(source(Pool("toy", tuple(given), ALL)), counts(), seed=seed, train_seed=seed + 1, stratify=stratify)
    splits = with_selection(splits, 0.2)
    parts = [{e.group for e in part} for part in (splits.train, splits.calibration, splits.test, splits.selection)]
    assert sum(map(len, parts)) == len(set().union(*parts)) < len({e.group for e in given if e.group}) + 4
    assert sum(len(part) for part in (splits.train, splits.calibration, splits.test, splits.selection)) == 16
    apart = split(
        source(Pool("a", tuple(given[:8]), ("train",)), Pool("b", tuple(given[8:]), ALL[1:])), counts(), seed=0
    )
    assert apart.report["duplicates_dropped"]["a"]["across"] >= 4
    assert not {e.group for e in apart.train} & {e.group for e in (*apart.calibration, *apart.test)}


def test_the_same_on_every_machine() -> None:
    splits = split(one_pool(12), counts(), seed=7)
    assert [e.id for e in splits.test + splits.calibration] == ["r7", "r11", "r3", "r10"]


def test_test_rows_depend_on_the_seed_alone() -> None:
    """Neither the number of training rows nor their own seed changes them, or the calibration rows."""
    first, more = (split(one_pool(100), counts(train, 10, 30), seed=0) for train in (20, 60))
    assert more.train[:20] == first.train
    assert split(one_pool(100), counts(20, 10, 30), seed=1).test != first.test
    drawn = [split(one_pool(100), counts(20, 10, 30), seed=0, train_seed=seed) for seed in (1, 2, 1)]
    for one in (more, *drawn):
        assert (one.test, one.calibration) == (first.test, first.calibration)
        assert not {e.id for e in one.train} & {e.id for e in one.test + one.calibration}
    assert {e.id for e in first.train} != {e.id for e in drawn[0].train} != {e.id for e in drawn[1].train}
    assert drawn[0].train == drawn[2].train
    assert (first.report["seed"], first.report["train_seed"], drawn[0].report["train_seed"]) == (0, 0, 1)
    assert json.loads(json.dumps(first.report)) == first.report
    together = split(one_pool(100), counts(20, 10, 30), seed=0, hold_out=False)
    assert (together.train, together.calibration) == (first.train + first.calibration, ())
    assert together.test == first.test
    assert together.report["rows"] == {"train": 30, "calibration": 0, "test": 30}
    (few,) = together.report["warnings"]
    assert few.startswith("30 calibration rows are fewer than 100")


@given(st.lists(st.integers(0, 3), min_size=20, max_size=80), st.integers(0, 2**32))
def test_stratified_splits_have_the_labels_in_proportion(labels: list[int], seed: int) -> None:
    """To about a row, for every split and every label, however rare; the rows of one label are a random draw."""
    task = Task("four", TEMPLATES["sentiment"], ("a", "b", "c", "d"))
    examples = tuple(Example(f"r{i}", {"text": f"text {i}"}, label, 4) for i, label in enumerate(labels))
    if len({e.label for e in examples}) < 2:
        return
    source = Source(task, (Pool("rows", examples, ALL),), "file", "four")
    for train_seed in (None, seed + 1):
        splits = split(source, counts(), seed=seed, train_seed=train_seed, stratify=True)
        for part in (splits.train, splits.calibration, splits.test):
            for label in range(4):
                expected = len(part) * labels.count(label) / len(labels)
                assert abs(sum(e.label == label for e in part) - expected) <= 2.5
        assert len({e.id for part in (splits.train, splits.calibration, splits.test) for e in part}) == len(labels)


@pytest.mark.parametrize(
    ("wanted", "sizes"),
    [
        (counts(), (40, 10, 20)),  # 4:1:2
        (counts(train=30, calibration=15), (30, 15, 25)),  # one open: all that the others leave
        (counts(calibration=0), (47, 0, 23)),
        (counts(20, 10, 5), (20, 10, 5)),
    ],
)
def test_open_sizes(wanted: dict[Role, int | None], sizes: tuple[int, int, int]) -> None:
    splits = split(one_pool(70), wanted, seed=0)
    assert (len(splits.train), len(splits.calibration), len(splits.test)) == sizes


def test_duplicates_stay_in_the_test_split_first() -> None:
    made = source(
        Pool("a", rows(["same", "x", "SAME ", "y", "z", "c\nc", "w"], prefix="a"), ("train",)),
        Pool("b", rows(["c c", "d", "e", "x  "], prefix="b"), ("calibration",)),
        Pool("c", rows(["Same", "x", "q"], prefix="c"), ("test",)),
    )
    splits = split(made, counts(), seed=0)
    assert sorted(e.id for e in splits.test) == ["c0", "c1", "c2"]
    assert sorted(e.id for e in splits.calibration) == ["b0", "b1", "b2"]
    assert sorted(e.id for e in splits.train) == ["a3", "a4", "a6"]
    assert splits.report["duplicates_dropped"] == {
        "a": {"within": 0, "across": 4, "conflicting_labels": 1},
        "b": {"within": 0, "across": 1, "conflicting_labels": 0},
        "c": {"within": 0, "across": 0, "conflicting_labels": 0},
    }
    assert splits.report["available"] == {"a": 7, "b": 4, "c": 3}
    warnings = "\n".join(splits.report["warnings"])
    for said in ("another label", "a: 4 rows repeat rows of another split's f", "b: 1 rows repeat rows of another"):
        assert said in warnings


def test_rows_that_are_not_there_or_teach_nothing_are_refused() -> None:
    message = r"^toy rows: train 700 \+ calibration 150 \+ test 100 rows asked for, 872 are there: ask for fewer$"
    with pytest.raises(DataError, match=message):
        split(one_pool(872), counts(700, 150, 100), seed=0)
    made = source(Pool("toy rows", rows(["one", "two", "two", "three"]), ALL))
    with pytest.raises(DataError, match=r"3 are there \(after 1 duplicates were dropped\)"):
        split(made, counts(train=4), seed=0)
    with pytest.raises(DataError, match=r"train 9 \+ calibration 1 \+ test at least 1 rows"):
        split(one_pool(10), counts(train=9, calibration=1), seed=0)
    with pytest.raises(DataError, match="1 training rows are fewer than the 2 classes"):
        split(one_pool(10), counts(train=1), seed=0)
    with pytest.raises(DataError, match="1 training rows are fewer than the 2 classes"):
        with_selection(split(one_pool(70), counts(), seed=0), 0.97)
    made = source(Pool("toy rows", rows([f"text {i}" for i in range(30)], label=1), ALL))
    with pytest.raises(DataError, match="every training row has the label 'positive'"):
        split(made, counts(), seed=0)


@pytest.mark.parametrize(
    ("train", "calibration", "test", "expected"),
    [
        (
            "ABA",
            "ABC" * 3,
            "ABC",
            [
                "no training row has the label 'C'",
                "the calibration split holds labels that no training row has: ['C']",
                "the test split holds labels that no training row has: ['C']",
                "9 calibration rows are fewer than 20",
                "3 training rows are fewer than the 9 calibration rows: leave data.calibration and data.test out",
            ],
        ),
        ("ABC" * 40, "B" * 100, "A", ["every calibration row has the label 'B': temperatures, thresholds"]),
        (
            "ABC" * 40,
            "AB" * 50,
            "A",
            ["no calibration row has the labels ['C']: coverage and risk as promised do not hold"],
        ),
        ("ABC" * 40, "ABC" * 33, "A", ["99 calibration rows are fewer than 100: thresholds for a stated error rate"]),
        ("ABC", "", "", ["no calibration rows", "no test rows"]),
    ],
)
def test_splits_that_are_not_good_for_everything_are_warned_about(
    train: str, calibration: str, test: str, expected: list[str]
) -> None:
    parts: dict[Role, str] = {"train": train, "calibration": calibration, "test": test}
    pools = [
        Pool(
            role,
            tuple(Example(f"{role}{i}", {"text": f"{role} {i}"}, "ABC".index(c), 3) for i, c in enumerate(of)),
            (role,),
        )
        for role, of in parts.items()
    ]
    given = Source(Task("toy", TEMPLATES["sentiment"], ("A", "B", "C")), tuple(pools), "file", "toy")
    warnings = split(given, counts(*map(len, parts.values())), seed=0).report["warnings"]
    assert [line[: len(start)] for line, start in zip(warnings, expected, strict=True)] == expected


def test_long_prompts_are_left_out_and_counted() -> None:
    whole = source(Pool("toy rows", rows([f"{'long ' * (i % 5 == 0) * 50}{i}" for i in range(25)]), ALL))
    kept = without_long_prompts(whole, 200)
    assert len(kept.pools[0].examples) == 20
    assert "5 rows with prompts over 200 characters left out" in kept.detail
    with pytest.raises(DataError, match="no prompt has 10 characters"):
        without_long_prompts(whole, 10)
