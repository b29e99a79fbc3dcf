"""A small task from its training to the page, on the real base; a second call; the figures and a rival by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from benchmarks.evidence import tasks
from benchmarks.evidence.rows import Row
from benchmarks.evidence.tasks import Task
from benchmarks.experts import __main__ as command
from benchmarks.experts import cells, scores
from benchmarks.experts.cells import Cell
from benchmarks.experts.methods import Answers
from benchmarks.experts.rivals import ON_EMBEDDINGS
from laplora.decisions.review import accept_threshold
from laplora.linearised import entropy
from laplora.prompts.examples import label_tensor
from laplora.prompts.templates import TEMPLATES

LABELS, CALIBRATION = 21, 7
#: What needs no sentence encoder, which is 84 MB.
HERE = ["temperature", "map", "conditioned", "frozen", "zero_shot", "logistic_last", "logistic_mean", "words"]


@pytest.mark.real
def test_from_training_to_the_page_and_nothing_again(
    small_task: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "_LABELS", LABELS)
    results, page = tmp_path / "results.json", tmp_path / "RESULTS.md"
    monkeypatch.setattr(command, "RESULTS", results)
    monkeypatch.setattr(command, "PAGE", page)
    given = ["--data", str(tmp_path), "--task", "trec", "--seed", "0", "--runs", str(tmp_path), "--method", *HERE]
    command.main([*given, "--no-training"])
    without = {record["method"] for record in scores.read(results)}
    assert without == {"frozen", "zero_shot", "logistic_last", "logistic_mean", "words"}

    command.main(given)
    records = {record["method"]: record for record in scores.read(results)}
    assert list(records) == HERE
    on_adapter = {"temperature", "map", "conditioned"}
    assert {name: r["honest"] for name, r in records.items()} == {
        name: CALIBRATION if name in on_adapter else LABELS for name in HERE
    }
    cell = Cell("trec", 0, tmp_path)
    logits = load_file(cell.folder / "adapter.test.safetensors")["logits"]
    loss = torch.nn.functional.cross_entropy(logits, label_tensor(cell.rows(tmp_path).test, 2))
    assert records["map"]["nll"] == pytest.approx(float(loss), rel=1e-3)
    text = page.read_text()
    assert f"| **frozen** | {records['frozen']['nll']:.3f}" in text.replace("**0", "0").replace("**1", "1")
    assert f"- trec, 1 of 3: {', '.join(HERE)}." in text

    (cell.folder / "methods" / "frozen.safetensors").unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    command.main(given)
    again = {record["method"]: record for record in scores.read(results)}
    assert again["frozen"] | {"seconds": 0} == records["frozen"] | {"seconds": 0}
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.real
def test_options_are_read_from_questions_alone(
    small_task: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def questions(_: Path) -> list[Row]:
        choices = ("four", "a cat", "red", "Paris")
        return [({"question": f"What is number {n}?", "choices": choices}, n % 4) for n in range(60)]

    task = Task("arc_easy", TEMPLATES["multiple_choice"], ("A", "B", "C", "D"), questions)
    monkeypatch.setitem(tasks.TASKS, "arc_easy", task)
    monkeypatch.setattr(cells, "_LABELS", LABELS)
    cell = Cell("arc_easy", 0, tmp_path)
    command.run(cell, tmp_path, ["options", "frozen", "words"], trains=False)
    assert [path.stem for path in (cell.folder / "methods").iterdir()] == ["options"]
    blocks = load_file(cell.folder / "options.safetensors")
    assert blocks["scores"].shape[:2] == (LABELS, 4)
    (record,) = scores.scored(cell, {"options": cell.folder / "methods" / "options.safetensors"})
    assert record["honest"] == LABELS


def test_a_threshold_is_set_on_honest_answers_and_judged_on_test_rows() -> None:
    """40 honest rows of falling confidence, the last 10 wrong."""
    confidence = torch.linspace(0.99, 0.6, 40).double()
    held_out = torch.stack([confidence, 1 - confidence], 1).log()
    held_out = torch.cat([torch.full((5, 2), torch.nan).double(), held_out])  # rows that trained the adapter
    labels = torch.tensor([0] * 35 + [1] * 10)
    test = torch.tensor([[0.98, 0.02], [0.9, 0.1], [0.1, 0.9], [0.61, 0.39]]).double().log()
    cell = Cell("trec", 0, Path())
    found = scores.score(cell, "any", Answers(held_out, test), 1.0, labels, torch.tensor([0, 1, 1, 0]))
    assert (found["honest"], found["accuracy"]) == (40, 0.75)
    limit = accept_threshold(entropy(held_out[5:].exp()), labels[5:] == 1, scores.TARGET)
    accepted = entropy(test.exp()) <= limit
    assert 0 < float(accepted.double().mean()) < 1
    assert found["accepted"] == float(accepted.double().mean())
    assert found["error"] == float(torch.tensor([False, True, False, False])[accepted].double().mean())
    assert found["nll"] == pytest.approx(-math.log(0.98 * 0.1 * 0.9 * 0.61) / 4, rel=1e-3)
    none = scores.score(cell, "any", Answers(held_out, test), 1.0, 1 - labels, torch.tensor([0, 1, 1, 0]))
    assert (none["accepted"], none["error"]) == (0, None)


def test_a_rival_takes_its_setting_by_folds_and_never_sees_a_held_out_label() -> None:
    draw = np.random.default_rng(0)
    rows, test = draw.normal(size=(60, 5)), draw.normal(size=(9, 5))
    labels = torch.from_numpy((rows[:, 0] + 0.5 * draw.normal(size=60) > 0).astype(int))
    folds = torch.arange(60) % 5

    def probs(strength: float, fitted: np.ndarray, asked: np.ndarray) -> np.ndarray:
        one = LogisticRegression(C=strength, max_iter=300).fit(rows[fitted], labels[fitted]).predict_proba(asked)
        share = 1 / (fitted.sum() + 1)  # no row has the third class
        return (1 - share) * np.column_stack([one, np.zeros(len(asked))]) + share / 3

    losses = {}
    for strength in ON_EMBEDDINGS.settings:
        out = np.zeros((60, 3))
        for fold in range(5):
            out[folds == fold] = probs(strength, (folds != fold).numpy(), rows[folds == fold])
        losses[strength] = -np.log(out[np.arange(60), labels]).mean()
    best = min(losses, key=lambda strength: losses[strength])
    held_out, answers = ON_EMBEDDINGS.answers(rows, labels, test, folds, 3)
    assert answers.exp().numpy() == pytest.approx(probs(best, np.ones(60, dtype=bool), test))
    assert float(-held_out.gather(1, labels[:, None]).mean()) == pytest.approx(losses[best])

    one = replace(ON_EMBEDDINGS, settings=(best,))
    moved = torch.where(folds == 0, 1 - labels, labels)
    first, second = (one.answers(rows, given, test, folds, 3)[0] for given in (labels, moved))
    assert torch.equal(first[folds == 0], second[folds == 0])
    assert not torch.equal(first, second)
