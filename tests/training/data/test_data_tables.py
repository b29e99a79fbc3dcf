"""Rows of the user's own choice: Parquet, data sets of the hub by a folder's name, columns called otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from laplora.errors import ConfigError, DataError, DownloadError
from training.data.section import DataConfig, load_splits

WORDS = ("negative", "positive")
ROWS = [{"sentence": f"number {i}", "mood": i % 2} for i in range(20)]
OWN: dict[str, Any] = {
    "template": "sentiment",
    "labels": list(WORDS),
    "label_field": "mood",
    "columns": {"text": "sentence"},
}
MAP = {0: "negative", 1: "positive"}


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def splits_of(**fields: Any) -> Any:
    return load_splits(DataConfig.model_validate(OWN | fields), seed=0)


def test_parquet_gives_what_json_lines_give(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    parquet(tmp_path / "rows.parquet", ROWS)
    one, other = (
        splits_of(dataset="file", path=tmp_path / f"rows.{kind}", label_map=MAP) for kind in ("jsonl", "parquet")
    )
    assert [(e.fields, e.label) for e in one.train] == [(e.fields, e.label) for e in other.train]
    assert other.train[0].id.startswith("rows.parquet:")
    assert {e.label for e in other.train} == {0, 1}
    bad = parquet(tmp_path / "bad.parquet", [*ROWS, {"sentence": None, "mood": 1}])
    with pytest.raises(DataError, match=r"bad.parquet, line 21: field 'text' is missing"):
        splits_of(dataset="file", path=bad, label_map=MAP)


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``owner/moods`` in the working directory, which ``datasets`` takes for a data set of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read once in a process
    folder = tmp_path / "owner" / "moods"
    folder.mkdir(parents=True)
    features = Features({"sentence": Value("string"), "mood": ClassLabel(names=list(WORDS))})
    for name, rows in (("train", ROWS), ("test", [{"sentence": f"test {i}", "mood": 1} for i in range(4)])):
        Dataset.from_list(rows, features=features).to_parquet(folder / f"{name}.parquet")
    return folder


def test_a_data_set_of_the_hub_with_splits_and_columns(hub_folder: Path) -> None:
    """Class numbers become the names that the data set has for them."""
    splits = splits_of(dataset="hub:owner/moods", hub={"test": "test"}, calibration=5)
    assert {e.fields["text"] for e in splits.test} == {f"test {i}" for i in range(4)}
    assert (len(splits.train), len(splits.calibration)) == (15, 5)
    assert all(e.label == int(e.fields["text"].split()[1]) % 2 for e in (*splits.train, *splits.calibration))
    assert splits.task.name == "moods"
    assert splits.report["source_detail"] == "folder: owner/moods (train, test)"
    assert len(splits_of(dataset="hub:owner/moods", hub={"train": "train[:10]"}).train) < 10


@pytest.mark.usefixtures("hub_folder")
@pytest.mark.parametrize("label_map", [{0: "bad", 1: "good"}, {"negative": "bad", "positive": "good"}])
def test_classes_of_the_hub_are_mapped_by_number_or_by_name(label_map: dict[Any, str]) -> None:
    splits = splits_of(dataset="hub:owner/moods", labels=["bad", "good"], label_map=label_map)
    assert all(e.label == int(e.fields["text"].split()[1]) % 2 for e in splits.train)


@pytest.mark.usefixtures("hub_folder")
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"hub": {"test": "train"}}, ConfigError, "hub names train for more than one split"),
        ({"dataset": "hub:csv"}, ConfigError, "'hub:csv' is a reader of files and no data set"),
        ({"hub": {"test": "dev"}}, DownloadError, r"owner/moods \(dev\) could not be loaded"),
        ({"dataset": "hub:owner/other"}, DownloadError, r"owner/other \(train\) could not be loaded"),
        ({"label_field": "sentence"}, ConfigError, "label_field 'sentence' is also a field of template"),
        ({"columns": {"words": "sentence"}}, ConfigError, r"columns names \['words'\]"),
        ({"columns": {"text": "words"}}, DataError, "owner/moods train, line 1: field 'text' is missing"),
        ({"dataset": "hub:../owner"}, ValueError, r"no data set is called 'hub:\.\./owner': known are winogrande_xs, "),
        ({"path": "a.csv"}, ValueError, r"\['path'\] belong to another dataset"),
        (
            {"dataset": "file", "path": "a.csv", "hub": {"train": "x"}},
            ValueError,
            r"\['hub'\] belong to another dataset",
        ),
        ({"labels": []}, ValueError, r"dataset hub:owner/moods needs \['labels'\]"),
    ],
)
def test_what_cannot_be_loaded_is_named(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        splits_of(**{"dataset": "hub:owner/moods"} | fields)
