"""The rows of each data set, the published page, and one small case from its training to its server's answers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.own_models import __main__ as own
from benchmarks.own_models import models, rows
from benchmarks.own_models.page import render

WORDS = {"place": ("where", "city", "river"), "person": ("who", "author", "king"), "date": ("when", "year", "day")}


def question(label: str, number: int) -> rows.Row:
    """Return one of many different questions of a label.

    Every fifth has another label's words. Without them all probabilities round to 0 and 1, thresholds lie among ties,
    and the last bit decides.
    """
    labels = tuple(WORDS)
    first, second, third = WORDS[label if number % 5 else labels[labels.index(label) - 1]]
    return {"text": f"{first} {second if number % 2 else third} number {number}", "label": label}


def questions(first: int, count: int) -> list[rows.Row]:
    return [question(tuple(WORDS)[number % 3], number) for number in range(first, first + count)]


def test_the_page_is_that_of_the_figures() -> None:
    assert (own.FOLDER / "RESULTS.md").read_text() == render(json.loads(own.RESULTS.read_text()))


def test_the_server_of_every_case_gives_its_figures() -> None:
    results = json.loads(own.RESULTS.read_text())
    assert set(results) == set(own.CASES)
    for result in results.values():
        asked = {name: found for name, found in result["served"].items() if name != "rows"}
        assert {"laplace", result["recommended"]} == set(asked)
        assert all(found["decisions_and_sets_alike"] for found in asked.values())
        assert all(found["largest_difference"] < 1e-4 for found in asked.values())


def test_splits_share_no_row(tmp_path: Path) -> None:
    folder = tmp_path / "banking77"
    folder.mkdir()
    lines = [f'"{row["text"]}",{row["label"]}' for row in questions(0, 150)]
    (folder / "train.csv").write_text("\n".join(["text,category", *lines, *lines[:5]]))
    tested = [f'"{row["text"]}",{row["label"]}' for row in questions(140, 1200)]
    (folder / "test.csv").write_text("\n".join(["text,category", *tested]))
    found = rows.banking77(tmp_path)
    assert found.labels == ("date", "person", "place")
    assert set(Counter(row["label"] for row in found.train).values()) == {30}
    assert set(Counter(row["label"] for row in found.calibration).values()) == {10}
    texts = [row["text"] for part in (found.train, found.calibration, found.test) for row in part]
    assert len(texts) == len(set(texts)) == 90 + 30 + 1000


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # Trainer's own
def test_a_case_from_training_to_its_servers_answers(tmp_path: Path) -> None:
    given = rows.Rows(tuple(sorted(WORDS)), questions(0, 48), questions(48, 30), questions(78, 30), questions(200, 64))
    case = own.Case("small", lambda _: given, models.encoder, models.questions, "{text}", 1, 2e-3)
    result = own.measure(case, tmp_path, tmp_path / "case")
    assert result["rows"] == {"train": 48, "calibration": 30, "test": 30}
    assert result["served"]["laplace"]["largest_difference"] < 1e-5
    assert result["served"]["laplace"]["decisions_and_sets_alike"]
    adapter = tmp_path / "case" / "adapter" / "adapter_model.safetensors"
    made = adapter.stat().st_mtime_ns
    again = own.measure(case, tmp_path, tmp_path / "case")
    assert adapter.stat().st_mtime_ns == made  # the model was kept
    assert again["predictives"] == result["predictives"]
    assert "## small" in render({"small": result | {"title": "small", "measured": {"date": "", "commit": ""}}})
