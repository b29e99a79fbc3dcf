"""Rows of the known data sets become the right examples, wherever they come from."""

from __future__ import annotations

from typing import Any

import pytest

from laplora.errors import DataError
from laplora.prompts.examples import Example
from laplora.prompts.templates import render
from training.data.benchmarks import BENCHMARKS, LETTERS, convert_rows


def one(dataset: str, row: dict[str, Any]) -> Example:
    return convert_rows(BENCHMARKS[dataset], [row], prefix="p")[0]


def prompt(dataset: str, example: Example) -> str:
    task = BENCHMARKS[dataset].task(dataset)
    return render(task.template, example.fields, task.labels)[0]


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
    choices = {"text": texts, "label": list(labels)}
    row = {"id": "X_1", "question": "Which one?", "choices": choices, "answerKey": key}
    example = one("arc_easy", row)
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
