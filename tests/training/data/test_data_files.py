"""The user's own files as splits, and configurations that cannot work."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from laplora.errors import ConfigError
from training.data.section import DataConfig, load_splits


def reviews(count: int, start: int = 0) -> str:
    rows = ({"review": f"text {i}", "stars": 1 + 4 * (i % 2)} for i in range(start, start + count))
    return "".join(json.dumps(row) + "\n" for row in rows)


def config(**values: Any) -> DataConfig:
    return DataConfig.model_validate(
        {
            "dataset": "file",
            "template": {"name": "stars", "text": "Review: {review}\nPositive?"},
            "labels": ["No", "Yes"],
            "label_field": "stars",
            "label_map": {1: "No", 5: "Yes"},
            **values,
        }
    )


def test_one_file_is_split_three_ways(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_text(reviews(140))
    lines: list[str] = []
    splits = load_splits(config(path=str(path)), seed=0, progress=lines.append)
    assert splits.report["rows"] == {"train": 80, "calibration": 20, "test": 40}
    assert (splits.task.name, splits.task.template.name, splits.task.labels) == ("reviews", "stars", ("No", "Yes"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert splits.report["source_detail"] == f"reviews.jsonl (sha256 {digest})"
    assert lines == []


def test_a_file_for_each_split(tmp_path: Path) -> None:
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "calibration", "test")}
    for i, path in enumerate(paths.values()):
        Path(path).write_text(reviews(30, start=30 * i))
    splits = load_splits(config(path=paths, name="mine"), seed=0)
    assert splits.report["rows"] == {"train": 30, "calibration": 30, "test": 30}
    assert splits.task.name == "mine"
    assert all(e.id.startswith("test.jsonl:") for e in splits.test)
    del paths["calibration"]
    lines: list[str] = []
    splits = load_splits(config(path=paths), seed=0, progress=lines.append)
    assert splits.report["rows"] == {"train": 24, "calibration": 6, "test": 30}
    assert [line.split(" ")[0] for line in lines] == ["warning:"]


def test_names_of_labels_apart_from_their_text(tmp_path: Path) -> None:
    """The rows have the names; their order, which is that of the classes, is kept in what is recorded."""
    path = tmp_path / "reviews.jsonl"
    path.write_text(reviews(40))
    named = config(path=str(path), labels={"No": " 0", "Yes": " 1"})
    splits = load_splits(named, seed=0)
    assert (splits.task.labels, splits.task.verbalizers) == (("No", "Yes"), (" 0", " 1"))
    assert {e.label for e in splits.test} == {0, 1}
    recorded = named.model_dump(mode="json")
    assert recorded["labels"] == [["No", " 0"], ["Yes", " 1"]]
    assert DataConfig.model_validate(recorded) == named
    assert load_splits(config(path=str(path)), seed=0).task.verbalizers is None


def test_files_that_would_leak_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "a.jsonl")
    Path(path).write_text(reviews(30))
    with pytest.raises(ConfigError, match="more than one split"):
        load_splits(config(path={"train": path, "test": path}), seed=0)
    with pytest.raises(ConfigError, match="the prompt would hold the answer"):
        load_splits(config(path=path, label_field="review"), seed=0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"path": None}, r"dataset file needs \['path'\]"),
        ({"labels": []}, r"dataset file needs \['labels'\]"),
        ({"labels": ["Yes", "Yes"]}, "at least two different words"),
        ({"labels": ["Yes", " No"]}, "a space around it"),
        ({"labels": [False, True]}, "put the words in quotes"),
        ({"labels": {False: " A", True: " B"}}, "put the words in quotes"),
        ({"labels": {"No": " A", "Yes": ""}}, "a name without a text"),
        ({"labels": {"No": " A", "Maybe": " B"}}, r"label_map leads to \['Yes'\]"),
        ({"label_map": {1: False, 5: True}}, "put the words in quotes"),
        ({"label_map": {1: "No", 5: "Maybe"}}, "label_map leads to"),
        ({"label_map": {1: "No"}}, "no value of label_map leads to"),
        ({"template": "reviews"}, "no template is called 'reviews'"),
        ({"template": {"name": "x", "text": "no field"}}, "no {field} placeholder"),
        ({"template": {"name": "x", "text": "{a}", "sep": ""}}, "Extra inputs are not permitted"),
        ({"dataset": "sst2"}, "belong to another dataset, not to sst2"),
        ({"subjects": ["law"]}, "subjects belong to dataset mmlu"),
        ({"dataset": "mmlu"}, "needs subjects"),
        ({"dataset": "mmlu", "subjects": ["law", "law"]}, "names one twice"),
        ({"train": 0}, "greater than or equal to 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        config(**{"path": "a.jsonl", **values})
