"""The out-of-distribution sets, and a tiny home from its states to its tables."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from tiny_models import add_lora
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from benchmarks.familiarity import __main__ as benchmark
from benchmarks.familiarity import homes
from laplora.prompts.examples import Example

NEAR, FAR = ("hello", "morning", "evening", "welcome"), ("treaty", "river", "senate", "engine")


def rows(words: tuple[str, ...], count: int, seed: int) -> list[Example]:
    """Return different texts of some words."""
    draw = random.Random(seed)
    texts = [" ".join([*draw.choices(words, k=draw.randint(3, 6)), str(number)]) for number in range(count)]
    return [Example(str(number), {"text": text}, number % 2, 2) for number, text in enumerate(texts)]


@pytest.mark.parametrize("template", ["Review: {text}\nIs this good? Answer:", "{text}"])
def test_a_home_from_its_states_to_its_tables(
    template: str, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever prompts end in. What is measured again is the same, and nothing is run for it."""
    model = add_lora(AutoModelForCausalLM.from_pretrained(tiny_base_folder), ["q_proj"], dtype=None)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base_folder)
    classifier = laplora.Classifier(model, tokenizer, template, ["negative", "positive"])
    home = homes.Home(classifier, rows(NEAR, 60, 1), rows(NEAR, 60, 2), rows(NEAR, 110, 3))
    far = [str(row.fields["text"]) for row in rows(FAR, 40, 4)]
    monkeypatch.setattr(benchmark, "home_of", lambda *_: home)
    monkeypatch.setattr(benchmark, "out_of_distribution", lambda *_: {"treaties": far, "out of scope": far[:9]})
    for place, value in (("FOLDER", tmp_path), ("RESULTS", tmp_path / "results.json"), ("SCRATCH", tmp_path / "runs")):
        monkeypatch.setattr(benchmark, place, value)
    given = ["--data", str(tmp_path), "--runs", str(tmp_path), "--only", "fields"]
    benchmark.main(given)
    result = json.loads((tmp_path / "results.json").read_text())["fields"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    assert len(kept) == 4
    same = "distances alone" if template.endswith(":") else "distances and logits"
    assert result["detection"]["familiarity"] == result["detection"][same]
    assert (result["tokens"] > 1) == template.endswith(":")
    for score, found in result["detection"].items():
        assert set(found) == {"treaties", "out of scope"}, score
        assert all(0 <= one["low"] <= one["auroc"] <= one["high"] <= 1 for one in found.values()), score
    assert [(row["kind"], row["calibration"]) for row in result["flags"]] == [("own", 60), ("drawn", 20), ("drawn", 50)]
    for row in result["flags"][1:]:
        # In the mean over draws: the share of a home's rows is at most what is stated, up to the draws' noise.
        assert row["familiar"] <= row["stated"] + 0.02
    assert "| treaties | 40 | " in (tmp_path / "RESULTS.md").read_text()
    benchmark.main(given)
    again = json.loads((tmp_path / "results.json").read_text())["fields"]
    assert again == result | {"measured": again["measured"]}
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}


def test_no_stranger_is_a_row_of_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "_OTHERS", ("emotion", "subjects"))
    home = homes.Home(None, rows(NEAR, 9, 1), rows(NEAR, 9, 2), rows(NEAR, 9, 3))  # type: ignore[arg-type]
    own = [str(row.fields["text"]) for row in home.new]
    exams = dataclasses.replace(
        homes.TASKS["subjects"], read=lambda _: [({"text": text}, 0) for text in (*own, "sum?")]
    )
    monkeypatch.setitem(homes.TASKS, "subjects", exams)
    scope = {"test": [[text, "an intent"] for text in [*own, "a query"]], "oos_test": [["another", "oos"]]}
    emotion, news = tmp_path / "tweet_eval" / "emotion", tmp_path / "ag_news"
    for folder in (tmp_path / "clinc150", news, emotion):
        folder.mkdir(parents=True)
    (tmp_path / "clinc150" / "data_full.json").write_text(json.dumps(scope))
    (news / "test.csv").write_text('"1","A title","and its text"\n')
    for split in ("train", "test", "val"):
        (emotion / f"{split}_text.txt").write_text(f"{own[0]}\ntweet {split}\n")
        (emotion / f"{split}_labels.txt").write_text("0\n1\n")
    sets = homes.out_of_distribution("fields", home, tmp_path)
    assert sets["CLINC150"] == ["a query"]
    assert sets["AG News"] == ["A title and its text"]
    assert sets["other subjects"] == ["sum?"]
    assert sets["emotion"]
    assert "subjects" not in sets
    assert not set(own) & {text for name, some in sets.items() if name != "typing mistakes" for text in some}
    assert homes.out_of_distribution("clinc150", home, tmp_path)["out of scope"] == ["another"]
