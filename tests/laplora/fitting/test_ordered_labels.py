"""Labels that have an order: sets without gaps, the expected label and its error, metrics by distance."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_artifacts import letters
from test_heads import QUESTION, question_rows
from tiny_classifiers import adapted_classifier
from tiny_models import tiny_base
from transformers import AutoModelForCausalLM

import laplora
from laplora.answers.expected_label import ExpectedLabel, expected_labels, root_of
from laplora.answers.written import Shown, written_answer
from laplora.bulk.evaluate import evaluate_file
from laplora.decisions.conformal import fit_label_sets
from laplora.errors import ConfigError
from laplora.fitting.cross_fitted import cross_fitted_report
from laplora.linearised import contrasts
from laplora.prompts.examples import label_tensor
from laplora.report.page import html
from laplora.report.verdict import judge

GRADES = {"poor": " w1", "fair": " w2", "good": " w3", "great": " w4"}
SETTINGS = laplora.FitSettings.model_validate({"experts": {"names": ["frozen"]}, "calibration": {"ordered": True}})


def graded(count: int, seed: int) -> list[dict[str, Any]]:
    """Return rows whose letters come from later in the alphabet the better the grade is, with slips to the next one."""
    draw, rows = random.Random(seed), list[dict[str, Any]]()
    for i in range(count):
        grade = i % 4
        text = " ".join(draw.choices("abcdefghijkl"[2 * grade : 2 * grade + 6], k=5))
        seen = min(3, grade + 1) if draw.random() < 0.2 else grade
        rows.append({"text": text, "label": list(GRADES)[seen]})
    return rows


def test_answers_of_an_order_from_the_fit_to_the_file_that_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))
    for part in (tiny_base("llama"), letters("[CLS] $A")):
        part.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = laplora.Classifier(base, letters("[CLS] $A"), "{text} z", GRADES, max_tokens=16)
    posterior, test = laplora.fit(model, graded(120, 0), settings=SETTINGS, progress=False), graded(60, 1)
    assert isinstance(posterior, laplora.HeadsPosterior)
    answers, names, sizes = posterior.predict(test), list(GRADES), set[int]()
    for answer in answers:
        held = [names.index(one) for one in answer.prediction_set]
        assert held == list(range(held[0], held[-1] + 1))
        assert answer.label in answer.prediction_set
        sizes.add(len(held))
        assert answer.expected is not None
        assert answer.expected.place == pytest.approx(float(answer.arrays.probs @ np.arange(4)))
        assert answer.expected.std is not None
        assert 0 < answer.expected.std < 1.5
    assert len(sizes) > 1
    # Set out of fold, by the same rule as sets without an order.
    record, honest = posterior.heads.predictives["frozen"], posterior.experts["frozen"].held_out.exp()
    labels = label_tensor(posterior.rows, 4)
    assert record.conformal == fit_label_sets("interval", honest, labels, 0.9)
    assert record.conformal < fit_label_sets("lac", honest, labels, 0.9)
    written = written_answer(answers[0], test[0])
    assert Shown("full").select(written)["expected_label"] == answers[0].expected.place  # type: ignore[union-attr]
    assert "expected_label" not in Shown().select(written)
    at_map = posterior.predict(test[:1], "map")[0].expected
    assert at_map is not None
    assert at_map.std is None
    found = posterior.evaluate(test)
    places = [names.index(row["label"]) for row in test]
    assert found["frozen"].mae == np.mean([abs(a.label_index - p) for a, p in zip(answers, places, strict=True)])
    assert str(found).splitlines()[0].split()[-5:] == ["mae", "rps", "coverage", "set", "size"]
    report = cross_fitted_report(posterior, "grades", "rows", {})
    assert "ranked probability score" in html(report, judge(report))
    folder = posterior.save(tmp_path / "grades", base=str(tmp_path / "base"))
    assert json.loads((folder / "manifest.json").read_text())["calibration"]["conformal"] == "interval"
    loaded = laplora.load(folder)
    assert loaded.predict(test)[3].prediction_set == answers[3].prediction_set
    later = loaded.condition(graded(40, 2), force=True)
    assert later.predict(test[:1])[0].expected is not None
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    measured = evaluate_file(folder, tmp_path / "test.jsonl").methods["frozen"]
    expected = [found["frozen"].mae, found["frozen"].rps]
    assert [measured["mae"], measured["rps"]] == pytest.approx(expected, abs=1e-4)


def test_the_error_of_the_expected_label_is_its_spread_over_the_logits() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, root = torch.randn(4, generator=draw).double(), torch.randn(3, 3, generator=draw).double()
    samples = (logits + torch.randn(200_000, 3, generator=draw).double() @ (contrasts(4) @ root).T).softmax(1)
    probs, covariance = samples.mean(0, keepdim=True), (root @ root.T)[None]
    (found,) = expected_labels(probs, logits[None], root_of(covariance, None))
    of_samples = samples @ torch.arange(4).double()
    assert found.place == pytest.approx(float(of_samples.mean()))
    assert found.std == pytest.approx(float(of_samples.std()), rel=0.04)
    (still,) = expected_labels(probs, logits[None], root_of(0 * covariance, None))
    assert still.std == pytest.approx(0, abs=1e-9)
    # It is a part of the labels' own spread, so it is never above that, here of an answer at a head's mode.
    (wide,) = expected_labels(
        torch.tensor([[0.9, 0.1]]), torch.tensor([[2.2, 0]]), root_of(None, torch.full((1, 2), 1e6))
    )
    assert wide == ExpectedLabel(pytest.approx(0.1), pytest.approx(0.3))
    assert expected_labels(torch.tensor([[0.5, 0.5]]), torch.zeros(1, 2), None) == [ExpectedLabel(0.5, None)]


def test_what_has_no_order_is_refused() -> None:
    tokenizer, rows = letters("[CLS] $A [SEP]"), question_rows()
    questions = laplora.Classifier(tiny_base("llama"), tokenizer, QUESTION, ["A", "B", "C"], max_tokens=64)
    several = adapted_classifier("llama", dtype=torch.float32, classes=2, problem_type="multi_label_classification")
    both = laplora.Classifier(several, tokenizer, "{text}", ["no", "yes"], max_tokens=12)
    lists = [{"text": f"{one} {other}", "label": ["no"]} for one in "abcdefgh" for other in "ijklmnop"]
    lists[::2] = [{**row, "label": ["yes"]} for row in lists[::2]]
    for given in ((questions, rows), (both, lists[:30], lists[30:])):
        with pytest.raises(ConfigError, match="ordered: labels of which several may be right, or that name choices"):
            laplora.fit(*given, settings=SETTINGS, progress=False)
