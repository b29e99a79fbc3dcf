"""The figures of one unit, by hand, by scikit-learn and by brute force."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from benchmarks.evidence.plan import SMALL
from benchmarks.evidence.scores import Answers, Unit, read, scored, write
from laplora.decisions.review import fit_thresholds
from laplora.linearised import PosteriorPredictive, entropy

UNIT = Unit("made_up", SMALL, 450, 1, 2)


def drawn(rows: int, seed: int, sharpness: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows, 3) log probabilities and labels drawn from them: these answers are perfectly calibrated."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = (sharpness * torch.randn(rows, 3, generator=generator).double()).log_softmax(1)
    return log_probs, torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]


def test_figures_are_those_of_other_implementations() -> None:
    held_out, labels = drawn(300, 0)
    test, truth = drawn(400, 1)
    (record,) = scored(UNIT, {"any": Answers(held_out, test, seconds=1.23456, passes=3)}, labels, truth)
    probs = test.exp().numpy()
    assert list(record.values())[:7] == ["made_up", SMALL, 450, 1, 2, "any", 300]
    assert record["nll"] == pytest.approx(log_loss(truth, probs), rel=1e-3)
    assert record["accuracy"] == pytest.approx(accuracy_score(truth, probs.argmax(1)), rel=1e-3)
    assert record["brier"] == pytest.approx(((probs - np.eye(3)[truth]) ** 2).sum(1).mean(), rel=1e-3)
    assert (record["seconds"], record["forwards"]) == (1.235, 3)
    assert (record["vs_temperature"], record["vs_served"]) == (None, None)
    ranked = (probs.argmax(1) != truth.numpy())[entropy(test.exp()).argsort().numpy()]
    assert record["aurc"] == pytest.approx(np.mean([ranked[:n].mean() for n in range(1, 401)]), rel=1e-3)


def test_calibrated_answers_have_the_ece_of_perfect_ones_and_confident_ones_a_larger_one() -> None:
    held_out, labels = drawn(50, 0)
    records = []
    for seed in range(12):
        test, truth = drawn(500, seed)
        answers = {"calibrated": Answers(held_out, test), "confident": Answers(held_out, (3 * test).log_softmax(1))}
        records.append(scored(UNIT, answers, labels, truth))
    calibrated, confident = ([one[place] for one in records] for place in (0, 1))
    mean, perfect = (np.mean([one[key] for one in calibrated]) for key in ("ece", "ece_perfect"))
    assert mean == pytest.approx(perfect, rel=0.15)  # seeded: about two standard errors of a mean of 12
    assert all(one["ece"] > 2 * one["ece_perfect"] for one in confident)


def test_a_threshold_is_the_products_of_honest_answers_alone() -> None:
    """The rows without an honest answer would lift the threshold: all of them are wrong."""
    held_out, labels = drawn(300, 3, sharpness=8.0)
    test, truth = drawn(400, 4, sharpness=8.0)
    padded = torch.cat([torch.full((40, 3), torch.nan).double(), held_out])
    record = scored(UNIT, {"any": Answers(padded, test)}, torch.cat([labels[:40] * 0, labels]), truth)[0]
    one = PosteriorPredictive(held_out.exp(), torch.zeros(300, 3).double(), entropy(held_out.exp()))
    wrong = test.argmax(1) != truth
    for end, target in (("", 0.05), ("_10", 0.10)):
        rule = fit_thresholds({"any": one}, labels, torch.ones(300).double(), target_risk=target)["any"].review
        accepted = entropy(test.exp()) <= rule.threshold
        assert 0.1 < float(accepted.double().mean()) < 1
        assert record[f"accepted{end}"] == float(accepted.double().mean())
        assert record[f"accepted_error{end}"] == pytest.approx(float(wrong[accepted].double().mean()), rel=1e-3)


def test_other_entropies_decide_and_rank_where_they_are_given() -> None:
    """The right answers have a low score, whatever their probabilities are: 360 of 400 rows, and no mistake."""
    test, _ = drawn(400, 5)
    truth = torch.where(torch.arange(400) < 360, test.argmax(1), (test.argmax(1) + 1) % 3)
    score = (truth != test.argmax(1)).double() + 0.01
    found = scored(UNIT, {"any": Answers(test, test, score, score)}, truth, truth)[0]
    assert (found["accepted"], found["accepted_error"]) == (0.9, 0)
    assert found["aurc"] == pytest.approx(sum((n - 360) / n for n in range(361, 401)) / 400, rel=1e-3)
    nothing = scored(UNIT, {"any": Answers(torch.full_like(test, torch.nan), test)}, truth, truth)[0]
    assert (nothing["honest"], nothing["accepted"], nothing["accepted_error"]) == (0, 0, None)


def test_differences_are_paired_by_row(tmp_path: Path) -> None:
    test = torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.4, 0.6], [0.1, 0.9]]).double().log()
    other = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.8, 0.2]]).double().log()
    truth = torch.tensor([0, 0, 0, 1])
    answers = {"temperature": Answers(other, other), "served": Answers(test, test)}
    reference, served = scored(UNIT, answers, truth, truth)
    by_row = np.array([0, math.log(0.5 / 0.8), math.log(0.5 / 0.4), math.log(0.2 / 0.9)])
    assert served["vs_temperature"] == pytest.approx([by_row.mean(), by_row.std(ddof=1) / 2], rel=1e-3)
    entropy = -sum(share * math.log(share) for share in (0.25, 0.75))
    assert served["left"] == pytest.approx(served["nll"] / entropy, rel=1e-3)
    assert served["vs_served"] == reference["vs_temperature"] == [0, 0]
    assert reference["vs_served"] == pytest.approx([-by_row.mean(), by_row.std(ddof=1) / 2], rel=1e-3)
    # Right are rows 0, 1 and 3; class 0 alone would be right in rows 0, 1 and 2.
    assert served["vs_frequent"] == pytest.approx([0, np.std([0, 0, -1, 1], ddof=1) / 2], rel=1e-3)

    write([reference, served], tmp_path / "results.json")
    assert read(tmp_path / "results.json") == [reference, served]
    assert read(tmp_path / "absent.json") == []
    lines = (tmp_path / "results.json").read_text().splitlines()
    assert json.loads(lines[1].rstrip(",")) == reference
    assert max(map(len, lines)) < 420
