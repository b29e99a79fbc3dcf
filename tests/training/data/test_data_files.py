"""The user's own files, and data sets of the hub by a folder's name, as splits; configurations that cannot work."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from pydantic import ValidationError

from laplora.errors import ConfigError, DataError, DownloadError
from training.data.adapter_rows import labels_of_rows
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


def test_one_file_is_split_three_ways_with_names_of_labels_apart_from_their_text(tmp_path: Path) -> None:
    """The rows have the names; their order, which is that of the classes, is kept in what is recorded."""
    path = tmp_path / "reviews.jsonl"
    path.write_text(reviews(140))
    lines: list[str] = []
    splits = load_splits(config(path=str(path)), seed=0, progress=lines.append)
    (few,) = lines
    assert few.startswith("warning: 20 calibration rows are fewer than 100")
    assert splits.report["rows"] == {"train": 80, "calibration": 20, "test": 40}
    task, digest = splits.task, hashlib.sha256(path.read_bytes()).hexdigest()
    assert (task.name, task.template.name, task.labels, task.verbalizers) == ("reviews", "stars", ("No", "Yes"), None)
    assert splits.report["source_detail"] == f"reviews.jsonl (sha256 {digest})"
    partly = load_splits(config(path=str(path), labels=["1", "Yes"], label_map={5: "Yes"}), seed=0)
    assert [e.label for e in partly.test] == [e.label for e in splits.test]
    with pytest.raises(DataError, match=r"reviews\.jsonl: no row has the field 'thread', which groups names"):
        load_splits(config(path=str(path), groups="thread"), seed=0)
    threads = tmp_path / "threads.jsonl"
    named_threads = [str((i // 5, i / 5 // 1)[i % 2]) if i < 135 else '"nan"' for i in range(140)]  # 0, 0.0, 0, ...
    rows = path.read_text().splitlines()
    threads.write_text("".join(f'{{"thread": {t}, {row[1:]}\n' for t, row in zip(named_threads, rows, strict=True)))
    apart = load_splits(config(path=str(threads), groups="thread"), seed=0)
    found = [{e.group for e in part if e.group} for part in (apart.train, apart.calibration, apart.test)]
    assert sum(map(len, found)) == len(set().union(*found)) == 27 + 5  # five rows have none
    named = config(path=str(path), labels={"No": " 0", "Yes": " 1"})
    apart = load_splits(named, seed=0)
    assert (apart.task.labels, apart.task.verbalizers) == (("No", "Yes"), (" 0", " 1"))
    assert [e.label for e in apart.test] == [e.label for e in splits.test]
    recorded = named.model_dump(mode="json")
    assert recorded["labels"] == [["No", " 0"], ["Yes", " 1"]]
    assert DataConfig.model_validate(recorded) == named


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


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_as_a_spreadsheet_writes_it(tmp_path: Path, delimiter: str) -> None:
    """Parted as its header is; whole numbers with .0 beside a gap; rows with a gap are left out, and said."""
    file, lines = tmp_path / "reviews.csv", list[str]()
    table = config(path=str(file), label_field="label", label_map={0: "No", 1: "Yes"})
    rows = [("review", "label"), *((f"number {i}", f"{i % 2}.0") for i in range(40))]
    rows += [("nan", "1.0"), ("x", ""), (" ", "0")]
    file.write_text("".join(f"{delimiter.join(row)}\n" for row in rows))
    splits = load_splits(table, seed=0, progress=lines.append)
    assert sum(splits.report["rows"].values()) == 40
    assert all(e.label == int(e.fields["review"].split()[1]) % 2 for e in splits.train)
    gone = f"warning: {file}: left out, as label or review is empty or nan: 3 of 43 rows (line 42, 43, 44)"
    assert lines[0] == gone
    file.write_text("review,label\n" + ",1\n" * 30)
    with pytest.raises(DataError, match=r"every row has an empty field \(review\)"):
        load_splits(table, seed=0)
    file.write_text("review,label\na,Yes\nb,no\nc,No\n")
    with pytest.raises(DataError, match=r"line 3: field 'label' is 'no', .*did you mean 'No'"):
        load_splits(config(path=str(file), label_field="label", label_map={0: "No"}), seed=0)
    with pytest.raises(ConfigError, match="has the labels 'No' and 'no', which differ in case alone"):
        labels_of_rows(file, "label")


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
        ({"labels": []}, r"dataset file needs \['labels'\]"),
        ({"labels": ["Yes", "Yes"]}, "at least two different words"),
        ({"labels": ["Yes", " No"]}, "a space around it"),
        ({"labels": {False: " A", True: " B"}}, "put the words in quotes"),
        ({"labels": {"No": " A", "Yes": ""}}, "a name without a text"),
        ({"label_map": {1: "No", 5: "Maybe"}}, "label_map leads to"),
        ({"label_map": {1: "No", "Yes": "No"}}, r"no value .* leads to the labels \['Yes'\], it leads from"),
        ({"template": {"name": "x", "text": "no field"}}, "no {field} placeholder"),
        ({"dataset": "sst2"}, "belong to another dataset, not to sst2"),
        ({"subjects": ["law"]}, "subjects belong to dataset mmlu"),
        ({"dataset": "mmlu"}, "needs subjects"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        config(**{"path": "a.jsonl", **values})


# Columns that are called otherwise: Parquet, and the hub.

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
    gone, *_ = splits_of(dataset="file", path=bad, label_map=MAP).report["warnings"]
    assert gone == f"{bad}: left out, as sentence is empty or nan: 1 of 21 rows (line 21)"


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
    """Class numbers become the names that the data set has for them; a map leads from either to labels of your own."""
    splits = splits_of(dataset="hub:owner/moods", hub={"test": "test"}, calibration=5)
    assert {e.fields["text"] for e in splits.test} == {f"test {i}" for i in range(4)}
    assert (len(splits.train), len(splits.calibration)) == (15, 5)
    assert all(e.label == int(e.fields["text"].split()[1]) % 2 for e in (*splits.train, *splits.calibration))
    assert splits.task.name == "moods"
    assert splits.report["source_detail"] == "folder: owner/moods (train, test)"
    assert len(splits_of(dataset="hub:owner/moods", hub={"train": "train[:10]"}).train) < 10
    for label_map in ({0: "bad", 1: "good"}, {"negative": "bad", "positive": "good"}):
        mapped = splits_of(dataset="hub:owner/moods", labels=["bad", "good"], label_map=label_map)
        assert all(e.label == int(e.fields["text"].split()[1]) % 2 for e in mapped.train)


@pytest.mark.usefixtures("hub_folder")
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"hub": {"test": "train"}}, ConfigError, "hub names train for more than one split"),
        ({"dataset": "hub:csv"}, ConfigError, "'hub:csv' is a reader of files and no data set"),
        ({"dataset": "hub:owner/other"}, DownloadError, r"owner/other \(train\) could not be loaded"),
        ({"label_field": "sentence"}, ConfigError, "the prompt would hold the answer"),
        ({"columns": {"words": "sentence"}}, ConfigError, r"columns names \['words'\]"),
        ({"columns": {"text": "words"}}, DataError, "owner/moods train, line 1: field 'text' is missing"),
        ({"dataset": "hub:../owner"}, ValueError, r"no data set is called 'hub:\.\./owner': known are winogrande_xs, "),
        ({"path": "a.csv"}, ValueError, r"\['path'\] belong to another dataset"),
    ],
)
def test_what_cannot_be_loaded_is_named(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        splits_of(**{"dataset": "hub:owner/moods"} | fields)
