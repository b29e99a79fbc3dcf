"""A remote model corrected by heads: what is fitted, what an artifact holds, and the command that makes it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import stat
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from decision_server import DecisionServer, decision_server, send
from head_artifacts import letter_rows, letters
from tiny_sentence_encoder import sentence_encoder_folder
from typer.testing import CliRunner

import laplora
from laplora.commands.app import app
from laplora.errors import (
    ConfigError,
    DataError,
    InvalidInputError,
    LaploraError,
    UpstreamChangedError,
    UpstreamRefusedError,
)
from laplora.fitting.entry import _declared
from laplora.fitting.heads import HeadsPosterior
from laplora.prompts.model_answers import LEAST, model_log_probs
from laplora.prompts.templates import MODEL_PROBS, PromptTemplate
from laplora.upstream.asking import Upstream
from laplora.upstream.remote_model import RemoteModel, remote_model

QUESTION = {
    "type": "choice",
    "instructions": "Is it early in the alphabet?",
    "criteria": {"no": "it is late", "yes": None},
}
KEY = "sk-secret-4711"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))


def encoder(folder: Path) -> str:
    return str(sentence_encoder_folder(folder / "encoder", letters("[CLS] $A [SEP]")))


def labelled(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [{"state": row["text"], "label": row["label"]} for row in letter_rows(count, seed, shortest=3)]


def fitted(remote: RemoteModel, rows: list[dict[str, Any]]) -> HeadsPosterior:
    answered, name = remote.answered(rows, progress=False)
    settings = laplora.FitSettings.model_validate({"experts": {"keep_rows": False}})
    found = laplora.fit(remote.classifier(name, "cpu"), answered, settings=settings, progress=False)
    assert isinstance(found, HeadsPosterior)
    return found


def test_heads_correct_a_model_that_knows_nothing(model: DecisionServer, tmp_path: Path) -> None:
    """The model's answers do not depend on what the labels do, so all that is right is the heads'."""
    remote = remote_model(model.url, QUESTION, key=KEY, encoder=encoder(tmp_path), at_once=4)
    posterior = fitted(remote, labelled(120))
    nll = posterior.heads.choice.nll
    assert set(nll) == {"map", "pooled"}
    assert posterior.recommended == "pooled"
    assert nll["pooled"] < nll["map"] - 0.1
    new, _ = remote.answered(labelled(60, seed=5), progress=False)
    measured = posterior.evaluate(new)
    assert measured["pooled"].nll < measured["map"].nll - 0.1
    (answer,) = posterior.predict([new[0]])
    assert answer.map_probs == pytest.approx(new[0][MODEL_PROBS], abs=1e-6)
    assert answer.familiarity is not None


@pytest.mark.parametrize("names", [(), ("corrected",), ("rescaled",)])
def test_a_model_that_is_right_is_left_as_it_is(names: tuple[str, ...], model: DecisionServer, tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = labelled(60)
    for row in rows:  # it is sure, and right in 19 of 20
        sure = 0.95 if row["label"] == "yes" else 0.05
        row[MODEL_PROBS] = {"no": 1 - sure, "yes": sure}
        if draw.random() < 0.05:
            row["label"] = "no" if row["label"] == "yes" else "yes"
    remote = remote_model(model.url, QUESTION, encoder=encoder(tmp_path))
    settings = laplora.FitSettings.model_validate({"experts": {"names": names}})
    found = laplora.fit(remote.classifier("perfect-1", "cpu"), rows, settings=settings, progress=False)
    assert isinstance(found, HeadsPosterior)
    assert not model.bodies
    nll = found.heads.choice.nll
    assert found.recommended == min(nll, key=lambda name: nll[name])
    assert nll["pooled"] < nll["map"] + 0.05  # the pool holds the model's own answer, and falls back to it
    loaded = laplora.load(found.save(tmp_path / "artifact", base=remote.encoder))
    assert loaded.predict(rows[:1])[0].probs == pytest.approx(found.predict(rows[:1])[0].probs, abs=1e-5)


def test_a_wrong_scale_is_mended_whatever_the_text_says(model: DecisionServer, tmp_path: Path) -> None:
    """The texts say nothing here, and the model says no to everything, less so where yes is right."""
    draw, rows = random.Random(1), list[dict[str, Any]]()
    for i in range(160):
        said = 0.05 if i % 2 else 0.25
        rows.append({"state": " ".join(draw.choices("abcdefghij", k=5)), "label": "no" if i % 2 else "yes"})
        rows[-1][MODEL_PROBS] = {"no": 1 - said, "yes": said}
    remote = remote_model(model.url, QUESTION, encoder=encoder(tmp_path))
    found = laplora.fit(remote.classifier("m", "cpu"), rows[:80], progress=False)
    assert isinstance(found, HeadsPosterior)
    measured = found.evaluate(rows[80:])
    assert measured["map"].accuracy == 0.5
    assert measured["rescaled"].accuracy == measured["pooled"].accuracy == 1
    (answer,) = found.predict([rows[0]])
    assert answer.familiarity is not None  # by a head that reads states


def test_the_artifact_holds_question_and_name_and_no_url_key_or_state(model: DecisionServer, tmp_path: Path) -> None:
    name = encoder(tmp_path)
    remote = remote_model(model.url, QUESTION, key=KEY, encoder=name)
    rows = labelled(60)
    posterior = fitted(remote, rows)
    folder = posterior.save(tmp_path / "artifact", base=name)
    held = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    assert KEY.encode() not in held
    assert model.url.encode() not in held
    assert not any(row["state"].encode() in held for row in rows)
    manifest = laplora.read_artifact(folder).manifest
    assert manifest.template.answered == "letters-1"
    assert manifest.base_model == name
    assert manifest.answers is not None
    assert manifest.answers.matches(*QUESTION.values())
    assert {"rescaled", "corrected", "frozen"} >= set(manifest.experts)
    assert set(manifest.pool) <= {"zero_shot", *manifest.experts}
    loaded, (new, _) = laplora.load(folder), remote.answered(labelled(8, seed=7), progress=False)
    for kept, memory in zip(loaded.predict(new), posterior.predict(new), strict=True):
        assert kept.probs == pytest.approx(memory.probs, abs=1e-5)
        assert kept.map_probs == pytest.approx(memory.map_probs, abs=1e-9)
    with pytest.raises(DataError, match="model_probs"):
        loaded.predict([{"state": "a b c"}])


def test_later_labels_are_learned_and_forgotten(model: DecisionServer, tmp_path: Path) -> None:
    remote = remote_model(model.url, QUESTION, encoder=encoder(tmp_path))
    first, later = (remote.answered(labelled(count, seed), progress=False)[0] for count, seed in ((60, 0), (30, 3)))
    posterior = laplora.fit(remote.classifier("letters-1", "cpu"), first, progress=False)
    assert isinstance(posterior, HeadsPosterior)
    more = posterior.condition(later)
    assert len(more.heads.labelled) == len(first) + len(later)
    back = more.forget(later)
    for one, other in zip(back.predict(later), posterior.predict(later), strict=True):
        assert one.probs == pytest.approx(other.probs, abs=1e-4)


def test_answers_are_kept_and_the_same_command_goes_on(model: DecisionServer, tmp_path: Path) -> None:
    kept, rows = tmp_path / "kept" / "answers.jsonl", labelled(40)
    remote = remote_model(model.url, QUESTION, key=KEY, at_once=2)

    def dies(handler: Any, body: Any) -> bool:
        return len(model.bodies) > 21 and send(handler, 401, {})

    def interrupts(handler: Any, body: Any) -> bool:
        if body["state"] == rows[5]["state"]:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    def ask(of: RemoteModel, stops: type[BaseException] | None = None) -> int:
        """Return how often the model is asked."""
        model.bodies = []
        with nullcontext() if stops is None else pytest.raises(stops):
            answered, _ = of.answered(rows, progress=False, keep=kept)
            assert answered == of.answered(rows, progress=False)[0]
            return len(model.bodies) - len(rows)
        return len(model.bodies)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs behind it ignore Ctrl-C
    model.hold_s, model.trick = 0.05, interrupts
    assert ask(remote, KeyboardInterrupt) < 10
    model.hold_s, model.trick = 0.0, dies
    ask(remote, UpstreamRefusedError)
    held = kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert not any(text in held for text in (KEY, model.url, "alphabet", *(row["state"] for row in rows)))
    kept.write_text(held[:-20])  # it was killed in the middle of a line
    model.trick = None
    assert 10 < ask(remote) < 25
    assert ask(remote) == 3  # whether it is the same
    with decision_server() as elsewhere:
        assert ask(replace(remote, upstream=Upstream(elsewhere.url))) == -40
        assert len(elsewhere.bodies) == 80
    assert ask(replace(remote, upstream=Upstream(model.url, "letters-1"))) == 40
    assert ask(remote_model(model.url, {**QUESTION, "instructions": "Another?"})) == 40
    model.name = "letters-2"
    assert ask(remote) == 40
    assert ask(remote) == 3
    other = {"question": {"type": "choice", "probabilities": {"no": 0.9, "yes": 0.1}}}

    def another(handler: Any, body: Any) -> bool:
        return dies(handler, body) or send(handler, 200, {"model": "letters-2", "answers": other})

    model.trick = another  # under the same name, and it stops in between
    ask(remote, UpstreamRefusedError)
    model.trick = lambda handler, body: send(handler, 200, {"model": "letters-2", "answers": other})
    assert 10 < ask(remote) < 25


def test_a_model_that_changes_between_two_rows(model: DecisionServer, tmp_path: Path) -> None:
    def rename(handler: Any, body: Any) -> bool:
        model.name = f"letters-{1 + len(model.bodies) // 5}"
        return False

    model.trick = rename
    with pytest.raises(UpstreamChangedError, match="called itself 'letters-1' and then 'letters-2'"):
        remote_model(model.url, QUESTION, at_once=1).answered(labelled(12), progress=False)
    with pytest.raises(DataError, match="row 1 has no 'state', and 0 more"):
        remote_model(model.url, QUESTION).answered([{"state": "a"}, {"text": "b"}], progress=False)


def test_probabilities_that_come_with_a_row() -> None:
    assert model_log_probs({MODEL_PROBS: {"no": 0.25, "yes": 0.75}}, ["no", "yes"]) == pytest.approx(
        torch.tensor([0.25, 0.75]).log().tolist()
    )
    rounded = model_log_probs({MODEL_PROBS: {"no": 0.0, "yes": 1.0}}, ["no", "yes"])
    assert rounded[0] == pytest.approx(float(torch.tensor(LEAST / (1 + LEAST), dtype=torch.float64).log()))
    for odd in (None, {}, {"no": 1.0}, {"no": 0.9, "yes": 0.9}, {"no": -0.1, "yes": 1.1}, {"no": "1", "yes": 0}):
        with pytest.raises(InvalidInputError, match="model_probs") as raised:
            model_log_probs({MODEL_PROBS: odd}, ["no", "yes"])
        assert raised.value.field == MODEL_PROBS


def test_in_a_notebook_and_labels_that_no_row_has(model: DecisionServer, tmp_path: Path) -> None:
    three = {**QUESTION, "criteria": {**QUESTION["criteria"], "maybe": None}}  # type: ignore[dict-item]
    remote = remote_model(model.url, three, encoder=encoder(tmp_path))

    async def cell() -> tuple[list[dict[str, Any]], str]:
        return remote.answered(labelled(30), progress=False)  # a notebook's loop runs here

    rows, name = asyncio.run(cell())
    with pytest.warns(laplora.LaploraWarning, match=r"no row has the labels \['maybe'\]"):
        found = laplora.fit(remote.classifier(name, "cpu"), rows, progress=False)
    assert set(found.predict([rows[0]])[0].probs) == {"no", "yes", "maybe"}


def test_what_no_model_can_have_answered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes choices"):
        PromptTemplate("t", 1, "{question} {choices}", answered="m")
    with pytest.raises(ConfigError, match="no field may be called"):
        PromptTemplate("t", 1, "{model_probs}")
    for odd in ({}, {"type": "choice"}, {"type": "score", "criteria": ["one"]}, {**QUESTION, "weight": 1}):
        with pytest.raises(ConfigError, match="a question has a type, instructions and criteria"):
            remote_model("http://host", odd)
    remote = remote_model("http://host", QUESTION, encoder=encoder(tmp_path))
    settings = laplora.FitSettings.model_validate({"experts": {"names": ["frozen"]}})
    rows = [{**row, MODEL_PROBS: {"no": 0.5, "yes": 0.5}} for row in labelled(30)]
    with pytest.raises(ConfigError, match="rescaled or corrected among them"):
        laplora.fit(remote.classifier("m", "cpu"), rows, settings=settings, progress=False)


def test_the_command(model: DecisionServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPLORA_UPSTREAM_KEY", KEY)
    spam = {"type": "noul", "instructions": "Is it?"}
    questions, rows, out = tmp_path / "questions.json", tmp_path / "rows.jsonl", tmp_path / "out"
    questions.write_text(json.dumps({"early": QUESTION, "spam": spam}))
    lines = [
        {
            "state": row["state"],
            "labels": {"early": row["label"], "spam": row["label"] == "yes"} if i % 4 else {"early": row["label"]},
        }
        for i, row in enumerate(labelled(80))
    ]
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    command = ["calibrate", "--url", model.url, "--questions", str(questions), "--rows", str(rows), "--out", str(out)]
    command += ["--encoder", encoder(tmp_path)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert re.search("early: NLL .* corrected\naccepted at a target error rate of 5.0.%: .* of 80 rows", done.stdout)
    assert re.search("spam: .*\n(.*\n)*verdict: ", done.stdout)
    assert f"--also-load spam --upstream-url {model.url}" in done.stdout
    assert "--upstream-model" not in done.stdout
    assert KEY not in done.output
    assert len(model.bodies) == 80 + 60 + 1  # whether it answers to the name that it gives itself
    assert (out / "spam.answers.jsonl").exists()
    assert set(model.keys) == {f"Bearer {KEY}"}
    assert laplora.read_artifact(out / "spam").manifest.labels == ("false", "true")
    assert not laplora.read_artifact(out / "spam").manifest.calibration.ordered
    level = remote_model(model.url, {"type": "score", "criteria": ["low", "high"]}, encoder=command[-1])
    assert _declared(level.classifier("m", "cpu"), laplora.FitSettings()).calibration.ordered
    with pytest.raises(ConfigError, match="is there already"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    rows.write_text(json.dumps({"state": " ", "labels": {"early": "yes", "spam": True}}))
    with pytest.raises(DataError, match="line 1: there is no 'state'"):
        CliRunner().invoke(app, [*command, "--replace"], catch_exceptions=False)
    assert len(model.bodies) == 80 + 60 + 1  # nothing was asked
    rows.write_text(json.dumps({"state": "a", "labels": {"early": "nay", "spam": 1}}))
    with pytest.raises(DataError, match="line 1: the label of 'early' is none of"):
        CliRunner().invoke(app, [*command, "--replace"], catch_exceptions=False)
    key = tmp_path / "key"
    key.write_text(KEY)
    with pytest.raises(ConfigError, match="are both set"):
        CliRunner().invoke(app, [*command, "--key-file", str(key)], catch_exceptions=False)


def test_a_model_known_by_its_alias_alone_soft_labels_and_states_that_are_cut(
    model: DecisionServer, tmp_path: Path
) -> None:
    """Nothing is written if one question cannot be fitted; the same command goes on once it can."""
    model.trick = lambda handler, body: body["model"] == "letters-1" and send(handler, 404, {})
    questions, rows, out = tmp_path / "questions.json", tmp_path / "rows.jsonl", tmp_path / "out"
    questions.write_text(json.dumps({"early": QUESTION, "spam": {"type": "noul", "instructions": "Is it?"}}))
    every = [
        {"state": " ".join([row["state"]] * (1 + 99 * (i % 2))), "labels": {"early": {"no": 0.9, "yes": 0.1}}}
        for i, row in enumerate(labelled(40))
    ]
    every[0]["labels"] |= {"spam": True}
    command = ["calibrate", "--url", model.url, "--questions", str(questions), "--rows", str(rows), "--out", str(out)]
    command += ["--encoder", encoder(tmp_path)]
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in every))
    with pytest.raises(LaploraError):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (out / "early").exists()
    for i, line in enumerate(every):
        line["labels"]["spam"] = i % 4 > 1
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in every))
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "--upstream-model jev-latest" in done.stdout
    cut = re.findall("longer ones than are read, go to review, ([0-9]+) of these rows", done.stdout)
    assert len(cut) == 2
    assert all(int(count) >= 20 for count in cut), done.stdout
