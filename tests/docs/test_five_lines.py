"""The programs of docs/python.md and README, run as they stand with the real base."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import blocks
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from benchmarks.harness.provenance import ARTIFACT
from laplora.models.offline import ensure_encoder, ensure_model

GOOD = ("a gripping film .", "lovely and warm .", "superb .", "a brilliant , moving plot .", "very funny .")
BAD = ("a dull film .", "clumsy and cold .", "terrible .", "a boring , weak plot .", "not funny at all .")
REVIEWS = [
    {"text": f"{start} {text}", "label": label}
    for start, (good, bad) in itertools.product(
        ("i say", "well ,", "for me", "once more :", "in short ,"), zip(GOOD, BAD, strict=True)
    )
    for text, label in ((good, "positive"), (bad, "negative"))
]
ANIMALS, OTHERS = ("dog", "cat", "horse", "cow", "sheep", "goat"), ("stone", "lamp", "river", "chair", "cloud", "spoon")
QUESTIONS = [
    {
        "question": f"Which of these is an animal, asked {i} times?",
        "choices": options,
        "label": "ABCD"[options.index(animal)],
    }
    for i, animal in enumerate(ANIMALS * 5)
    for options in [[*OTHERS[i % 3 : i % 3 + i % 4], animal, *OTHERS[i % 3 + i % 4 : i % 3 + 3]]]
]


def block(of: str) -> str:
    """Return the page's only block of Python with this text."""
    (found,) = [one.text for one in blocks("python") if one.page == "docs/python.md" and of in one.text]
    return str(found)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What stands before the five lines in a user's program."""
    folder = str(ensure_model("smollm2-135m-instruct"))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ensure_encoder("all-minilm-l6-v2")
    return {"base": base, "tokenizer": AutoTokenizer.from_pretrained(folder), "laplora": laplora, "folder": folder}


def test_a_model_as_it_is(names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"rows": REVIEWS[:30], "later_rows": REVIEWS[30:40], "new_rows": REVIEWS[40:], "test_rows": REVIEWS[40:]}
    exec(block("posterior.condition(later_rows)"), given | names, found := {})
    assert isinstance(found["posterior"], laplora.HeadsPosterior)
    assert len(found["posterior"].rows) == 40
    assert (tmp_path / "artifacts" / "your-reviews" / "experts.safetensors").is_file()
    assert [one.label for one in found["answers"]] == [row["label"] for row in REVIEWS[40:]]
    assert found["posterior"].predictives == ("map", "frozen", "encoder", "pooled")


def test_the_readmes_five_lines(names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (shown,) = [one.text for one in blocks("python") if one.page == "README.md"]
    exec(shown, {"rows": REVIEWS[:40], "new_rows": REVIEWS[40:], "test_rows": REVIEWS[40:]} | names, found := {})
    assert [one.label for one in found["answers"]] == [row["label"] for row in REVIEWS[40:]]
    assert (tmp_path / "artifacts" / "your-reviews" / "experts.safetensors").is_file()


def test_multiple_choice(names: dict[str, Any]) -> None:
    exec(
        block("laplora.fit(classifier, questions)"),
        names | {"questions": QUESTIONS[:24], "new_questions": QUESTIONS[24:]},
        found := {},
    )
    assert found["posterior"].predictives == ("map", "options")
    assert [one.label for one in found["answers"]] == [row["label"] for row in QUESTIONS[24:]]


def test_a_model_with_an_adapter(names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = AutoModelForCausalLM.from_pretrained(names["folder"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(ARTIFACT / "adapter"))
    given = {"train_rows": REVIEWS[:10], "calibration_rows": REVIEWS[10:34], "test_rows": REVIEWS[34:]}
    monkeypatch.chdir(tmp_path)
    exec(
        block("train_rows, calibration_rows"), {"model": model, "new_rows": REVIEWS[34:36]} | given | names, found := {}
    )
    assert isinstance(found["posterior"], laplora.CalibratedPosterior)
    assert (tmp_path / "artifacts" / "your-reviews" / "manifest.json").is_file()
    assert [one.label for one in found["answers"]] == [row["label"] for row in REVIEWS[34:36]]
