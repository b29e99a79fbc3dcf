"""The sets of strangers, and two tiny cases from their training to their tables."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.familiarity import __main__ as benchmark
from benchmarks.familiarity import homes, models
from benchmarks.familiarity.scores import CALIBRATION

GREETINGS, COLOURS = ("hello", "morning", "evening", "welcome"), ("red", "green", "blue", "yellow")
NEAR, FAR = ("seven", "eight", "nine", "ten"), ("treaty", "river", "senate", "engine")


def texts(words: tuple[str, ...], count: int, seed: int) -> list[str]:
    """Return different texts of some words."""
    draw = random.Random(seed)
    return [f"{draw.choice(words)} {draw.choice(words)} {draw.choice(words)} {number}" for number in range(count)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with a few rows of every data set, in its authors' files."""
    folder = tmp_path / "data"

    def write(name: str, lines: list[str]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n")

    kept, others = texts(GREETINGS, 80, 1), texts(NEAR, 30, 2)
    intents = [("a greeting", kept), ("b other", others[:15]), ("c colour", texts(COLOURS, 80, 3))]
    intents.append(("d other", others[15:]))
    rows = [f"{text},{intent}" for intent, some in intents for text in some]
    write("banking77/train.csv", ["text,category", *rows])
    write("banking77/test.csv", ["text,category"])
    words = [(GREETINGS, 0), (COLOURS, 1)]
    write("sst2/dev.tsv", ["sentence\tlabel", *(f"{t}\t{n}" for w, n in words for t in texts(w, 230, 4 + n))])
    for split, seed in (("train", 6), ("test", 7)):
        write(f"tweet_eval/emotion/{split}_text.txt", [f"tweet {split} {t}" for t in texts(FAR, 160, seed)])
        write(f"tweet_eval/emotion/{split}_labels.txt", [str(number % 4) for number in range(160)])
        write(f"trec/{split}.txt", [f"LOC:city Which {split} {t} ?" for t in texts(FAR, 160, seed)])
    write("tweet_eval/irony/test_text.txt", texts(FAR, 5, 8))
    scope = {name: [[f"{name} {t}", "an intent"] for t in texts(FAR, 30, 9)] for name in ("train", "val", "test")}
    write("clinc150/data_full.json", [json.dumps(scope | {"oos_test": [[t, "oos"] for t in texts(FAR, 5, 10)]})])
    write("boolq/dev.jsonl", [json.dumps({"passage": t}) for t in texts(FAR, 9, 11)])
    stems = [json.dumps({"question": {"stem": t}}) for t in texts(FAR, 9, 12)]
    write("arc/ARC-Easy/ARC-Easy-Test.jsonl", stems)
    return folder


def test_no_stranger_is_a_row_of_the_home(data: Path) -> None:
    home = homes.HOMES["banking77"](data)
    assert home.labels == ("a greeting", "c colour")
    assert len(home.train) == 24
    inside = {text for text, _ in [*home.train, *home.pool]}
    assert len(inside) == 160
    sets = homes.strangers("banking77", data)
    assert len(sets["the other intents"]) == 30
    assert not any(text in inside for some in sets.values() for text in some)


@pytest.mark.parametrize("name", ["banking77", "sst2"])
def test_a_case_from_training_to_its_tables(
    name: str, data: Path, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head and label words. What is measured again is the same, and nothing is trained or run for it."""
    monkeypatch.setattr(models, "ensure_model", lambda _: tiny_base_folder)
    monkeypatch.setattr(models, "TOP", [1])
    for place, value in (("FOLDER", tmp_path), ("RESULTS", tmp_path / "results.json"), ("SCRATCH", tmp_path / "runs")):
        monkeypatch.setattr(benchmark, place, value)
    given = ["--data", str(data), "--only", name]
    benchmark.main(given)
    result = json.loads((tmp_path / "results.json").read_text())[name]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    assert result["chosen_on"]
    sets = result["detection"]["familiarity"]
    assert {*result["near"], "trec", "passages", "random letters"} <= set(sets)
    for score, found in result["detection"].items():
        assert set(found) == set(sets), score
        assert all(0 <= one["low"] <= one["auroc"] <= one["high"] <= 1 for one in found.values()), score
    assert [row["calibration"] for row in result["flags"]] == [
        n for n in CALIBRATION if n <= result["rows"]["pool"] - 100
    ]
    for row in result["flags"]:
        # In the mean over draws: the share of a home's rows is at most what is stated, up to the draws' noise.
        assert row["familiar"] <= row["stated"] + 0.02
    assert f"| strangers | texts | {name} |" in (tmp_path / "RESULTS.md").read_text()
    benchmark.main(given)
    again = json.loads((tmp_path / "results.json").read_text())[name]
    assert again == result | {"measured": again["measured"]}
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
