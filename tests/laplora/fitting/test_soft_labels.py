"""Labels that are probabilities: fits by cross-entropy, what counts as right, and the rows that hold them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import torch
from head_artifacts import letters
from hypothesis import given, settings
from hypothesis import strategies as st
from test_heads import FROZEN, LABELS, classifier, labelled
from tiny_models import tiny_base
from transformers import AutoModelForCausalLM

import laplora
from laplora.bulk.evaluate import evaluate_file
from laplora.data.labelled import Task, examples_of
from laplora.data.records import read_records
from laplora.decisions.temperature import fit_temperature
from laplora.errors import DataError
from laplora.experts.base import Labelled, losses_of
from laplora.fitting.cross_fitted import cross_fitted_report
from laplora.fitting.rows import check_labels, read_rows
from laplora.head.fit import fit
from laplora.linearised import (
    class_log_probs,
    contrast_mean,
    cross_entropy,
    log_likelihood,
    most_probable,
)
from laplora.metrics.scores import evaluate_probs
from laplora.pool.weights import fit_weights
from laplora.prior.search import predictive_nll
from laplora.prompts.examples import label_tensor
from laplora.prompts.labelled import example_of
from laplora.prompts.templates import PromptTemplate
from laplora.report.page import html
from laplora.report.verdict import judge

TEMPLATE = PromptTemplate("letters", 1, "{text} z", label_prefix=" ")
Draw = torch.Generator


def drawn(rows: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of rows of two to all classes, their class mask, and soft labels of possible classes."""
    draw = Draw().manual_seed(seed)
    counts = torch.randint(2, classes + 1, (rows,), generator=draw)
    mask = torch.arange(classes) < counts[:, None]
    logits, other = torch.randn(2, rows, classes, generator=draw, dtype=torch.float64)
    return 2 * logits, mask, (2 * other).masked_fill(~mask, -torch.inf).softmax(1)


def likelihoods(logits: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """By name what is linear in the label, (rows, ...)."""
    numbers = torch.arange(len(mask))
    of = Labelled(labels, mask, numbers, numbers % 2, torch.ones(len(mask), dtype=torch.bool))
    return {
        "losses": losses_of(class_log_probs(logits, mask), of),
        "log-likelihood": log_likelihood("categorical", logits, labels, mask),
    }


def prior_nll(logits: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> float:
    spread = torch.eye(mask.shape[1] - 1, dtype=torch.float64).expand(len(mask), -1, -1) * 0.5
    return predictive_nll(contrast_mean(logits), spread, labels, mask)


def fits(logits: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """By name everything that is fitted to labels or measured by their likelihood."""
    logs = class_log_probs(logits, mask)
    evaluated = evaluate_probs(logs.exp(), labels, resamples=0)
    pool = {"one": logs, "two": class_log_probs(logits.roll(1, 1), mask)}
    head = fit(logits.masked_fill(~mask, 0), labels, class_mask=mask, classes=mask.shape[1], folds=3)
    return {
        **likelihoods(logits, mask, labels),
        "pool": list(fit_weights(pool, labels).values()),
        "temperature": fit_temperature(logits, labels, mask),
        "prior": prior_nll(logits, mask, labels),
        "head": head.head.log_probs(logits.masked_fill(~mask, 0), None, mask).exp(),
        "held out": head.held_out.exp(),
        **{name: getattr(evaluated, name) for name in ("nll", "brier", "accuracy", "ece", "aurc")},
    }


@settings(max_examples=12)
@given(st.sampled_from([2, 3, 5, 18]), st.integers(0, 99))
def test_a_label_of_probability_1_is_a_hard_label(classes: int, seed: int) -> None:
    logits, mask, soft = drawn(24, classes, seed)
    hard = most_probable(soft)
    found, expected = fits(logits, mask, torch.eye(classes).double()[hard]), fits(logits, mask, hard)
    # The prior of two classes is searched by an integral of fewer points, of many by logits of float32.
    for name, value in expected.items():
        tolerance = 1e-6 if name == "prior" or "head" in name or "held" in name else 1e-9
        torch.testing.assert_close(torch.as_tensor(found[name]), torch.as_tensor(value), rtol=0, atol=tolerance)


@settings(max_examples=10)
@given(st.sampled_from([2, 4, 18]), st.integers(0, 99))
def test_a_likelihood_is_the_expectation_over_the_label(classes: int, seed: int) -> None:
    """Whatever is linear in the label: its value at each label, by the label's probability."""
    logits, mask, soft = drawn(6, classes, seed)
    mask, soft = torch.ones_like(mask), soft.clamp_min(1e-3) / soft.clamp_min(1e-3).sum(1, keepdim=True)
    hard = [torch.full((6,), k) for k in range(classes)]
    for name, found in likelihoods(logits, mask, soft).items():
        each = torch.stack([likelihoods(logits, mask, labels)[name] for labels in hard], 1)
        torch.testing.assert_close(found, torch.einsum("rk,rk...->r...", soft, each))
    by_row = [[prior_nll(logits[[row]], mask[[row]], labels[:1]) for labels in hard] for row in range(6)]
    expected = float((torch.tensor(by_row, dtype=torch.float64) * soft).sum(1).mean())
    assert prior_nll(logits, mask, soft) == pytest.approx(expected, abs=1e-5)


def test_ten_rows_of_which_seven_have_one_label_are_ten_soft_rows() -> None:
    draw = Draw().manual_seed(0)
    states = torch.randn(12, 5, generator=draw).repeat_interleave(10, 0)
    hard = torch.tensor([0] * 7 + [2] * 3).repeat(12)
    soft = torch.tensor([0.7, 0.0, 0.3], dtype=torch.float64).expand(120, 3)
    precisions = {"features": 0.1}
    found, expected = (fit(states, of, classes=3, honest=False, precisions=precisions).head for of in (soft, hard))
    torch.testing.assert_close(found.log_probs(states), expected.log_probs(states), rtol=0, atol=1e-8)


@settings(max_examples=8)
@given(st.permutations(range(4)), st.integers(0, 99))
def test_labels_in_another_order_answer_in_that_order(order: list[int], seed: int) -> None:
    logits, mask, soft = drawn(30, 4, seed)
    mask = torch.ones_like(mask)
    first, other = fits(logits, mask, soft), fits(logits[:, order], mask, soft[:, order])
    for name in ("losses", "temperature", "nll", "brier", "accuracy"):
        torch.testing.assert_close(torch.as_tensor(other[name]), torch.as_tensor(first[name]))
    pools = [
        {"one": class_log_probs(of, mask), "two": 0.3 * class_log_probs(of**2, mask)}
        for of in (logits, logits[:, order])
    ]
    weights = [fit_weights(pool, of) for pool, of in zip(pools, (soft, soft[:, order]), strict=True)]
    assert weights[1] == pytest.approx(weights[0])
    precisions = {"features": 0.1}
    heads = [
        fit(logits, of, honest=False, precisions=precisions).head.log_probs(logits) for of in (soft, soft[:, order])
    ]
    torch.testing.assert_close(heads[1], heads[0][:, order], rtol=0, atol=1e-6)


def test_answers_that_equal_the_labels_have_a_divergence_of_0_and_the_most_probable_label_is_right() -> None:
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    found = evaluate_probs(soft, soft, resamples=0)
    assert (found.kl, found.brier, found.accuracy) == (pytest.approx(0, abs=1e-12), 0, 1)
    # Of equal ones the first is right.
    turned = evaluate_probs(soft[:, [1, 0, 2]], soft, resamples=0)
    assert turned.accuracy == pytest.approx(2 / 3)
    assert turned.kl == pytest.approx(
        (0.2 * torch.log(torch.tensor(1.5)).item() + 0.1 * torch.log(torch.tensor(1.5)).item()) / 3
    )
    assert turned.brier == pytest.approx((2 * 0.2**2 + 2 * 0.1**2) / 3)
    assert evaluate_probs(soft, most_probable(soft), resamples=0).kl is None


SOFT: list[dict[str, Any]] = [
    {"text": "a b", "label": {"yes": 0.7, "no": 0.3}},
    {"text": "c d", "label": {"no": 0.5004, "yes": 0.5}},
    {"text": "e f", "label": "yes"},
    {"text": "g h", "label": {"no": 1}},
]


def as_json_lines(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SOFT))
    return folder / "rows.jsonl"


def as_csv(folder: Path) -> Path:
    cells = [
        row | {"label": row["label"] if isinstance(row["label"], str) else json.dumps(row["label"])} for row in SOFT
    ]
    pd.DataFrame(cells).to_csv(folder / "rows.csv", index=False)
    return folder / "rows.csv"


def as_parquet(folder: Path) -> Path:
    """A struct has every label in every row, null where a row does not name it."""
    whole = [row | {"label": row["label"] if isinstance(row["label"], dict) else {row["label"]: 1.0}} for row in SOFT]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(whole), folder / "rows.parquet")
    return folder / "rows.parquet"


@pytest.mark.parametrize("write", [as_json_lines, as_csv, as_parquet])
def test_rows_of_every_kind_of_file_and_of_python_are_the_same(write: Callable[[Path], Path], tmp_path: Path) -> None:
    task, path = Task("letters", TEMPLATE, tuple(LABELS)), write(tmp_path)
    found = examples_of(path, read_records(path), task, "label", {}, {})
    assert [example.label for example in found] == [1, 0, 1, 0]
    total = 0.5004 + 0.5
    assert [example.target for example in found] == [(0.3, 0.7), (0.5004 / total, 0.5 / total), None, None]
    numbered = [
        row | {"label": {1: row["label"]["yes"], 0: row["label"]["no"]} if i == 0 else row["label"]}
        for i, row in enumerate(SOFT)
    ]
    for rows in (SOFT, numbered, pd.DataFrame(SOFT)):
        given = read_rows(rows, classifier(), "label")
        assert [(e.label, e.target) for e in given] == [(e.label, e.target) for e in found]
    check_labels(found[:1], list(LABELS))  # "no" is possible, though it is no row's most probable one
    with pytest.raises(DataError, match="no row has the labels"):
        check_labels(found[2:3], list(LABELS))
    assert label_tensor(found, 2).tolist()[2:] == [[0, 1], [1, 0]]
    assert label_tensor(found[2:], 2).tolist() == [1, 0]  # with no soft one, as ever


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"yes": 0.7, "no": 0.2}, "the probabilities of a label sum to 1, these to 0.9"),
        ({"yes": 1.2, "no": -0.2}, "the probability of 'no' must be a number of 0 or more"),
        ({"yes": float("nan"), "no": 1}, "the probability of 'yes' must be a number"),
        ({"yes": "0.7", "no": 0.3}, "the probability of 'yes' must be a number"),
        ({"yes": 0.7, "maybe": 0.3}, "label 'maybe' is not among"),
        ({"yes": 0, "no": 0}, "sum to 1, these to 0"),
        ({}, "sum to 1, these to 0"),
        ('{"yes": 0.7, "no"', "expected one of"),
    ],
)
def test_what_is_no_soft_label_is_refused_with_its_row_and_field(label: Any, message: str, tmp_path: Path) -> None:
    rows = [*SOFT, {"text": "i", "label": label}]
    with pytest.raises(DataError, match=re.escape("row 4: field 'label'") + ".*" + re.escape(message)):
        read_rows(rows, classifier(), "label")
    if label == label and "nan" not in str(label):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task, path = Task("letters", TEMPLATE, tuple(LABELS)), tmp_path / "rows.jsonl"
        with pytest.raises(DataError, match=f"rows.jsonl, line 5: field 'label'.*{re.escape(message)}"):
            examples_of(path, read_records(path), task, "label", {}, {})


def softened(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows whose label is .8 probable."""
    other = {"yes": "no", "no": "yes"}
    return [{**row, "label": {row["label"]: 0.8, other[row["label"]]: 0.2}} for row in rows]


def test_heads_of_soft_rows_answer_learn_and_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They answer nearer to the labels than heads of the hard ones, and count the same answers as right."""
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))
    for part in (tiny_base("llama"), letters("[CLS] $A")):
        part.save_pretrained(tmp_path / "base")
    model = classifier(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    hard, soft = (
        laplora.fit(model, rows, settings=FROZEN, progress=False) for rows in (labelled(60), softened(labelled(60)))
    )
    assert isinstance(soft, laplora.HeadsPosterior)
    test = softened(labelled(40, seed=5))
    found, other = soft.evaluate(test), hard.evaluate(test)
    kl = [one["frozen"].kl for one in (found, other)]
    assert kl[0] is not None
    assert kl[1] is not None
    assert kl[0] < 0.9 * kl[1]
    assert "kl" in str(found).splitlines()[0]
    assert "kl" not in str(hard.evaluate(labelled(40, seed=5))).splitlines()[0]
    record = soft.heads.predictives["frozen"]
    honest = soft.experts["frozen"].held_out
    targets = label_tensor(soft.rows, 2)
    assert record.nll == pytest.approx(float(cross_entropy(honest, targets).mean()))
    assert record.thresholds.errors == int((honest.argmax(1) != most_probable(targets)).sum())
    report = cross_fitted_report(soft, "letters", "rows", {})
    assert "<th" in (page := html(report, judge(report)))
    assert "NLL less the entropy of the labels" in page
    learned = soft.condition(labelled(15, seed=3, first=60))  # hard ones beside
    assert learned.heads.labelled.labels.shape == (75, 2)
    back = learned.forget([row["id"] for row in labelled(15, seed=3, first=60)])
    assert back.predict_proba(test) == pytest.approx(soft.predict_proba(test), abs=1e-6)
    folder = soft.save(tmp_path / "letters", base=str(tmp_path / "base"))
    loaded = laplora.load(folder)
    later = loaded.condition(softened(labelled(30, seed=8)), force=True)
    assert later.predict_proba(test) != pytest.approx(soft.predict_proba(test), abs=1e-6)
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    measured = evaluate_file(folder, tmp_path / "test.jsonl").methods["frozen"]
    assert measured["kl"] == pytest.approx(kl[0], abs=1e-4)
    assert measured["nll"] == pytest.approx(found["frozen"].nll, abs=1e-4)


def test_where_several_labels_may_be_right_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match="of one right label, and of this model several may be"):
        example_of(SOFT[0], "0", TEMPLATE, list(LABELS), "label", several=True)
