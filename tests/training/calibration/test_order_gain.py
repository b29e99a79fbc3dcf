"""The report's order averages: the same as the predictor's own, with their cost and gain beside them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tiny_runs import FinishedRun

from laplora.metrics.scores import evaluate_probs
from laplora.predictor import Predictor
from laplora.prompts.option_order import option_orders
from training.calibration.order_average import OrderGain, _prompts
from training.data.examples import Example
from training.report.evaluation import display_name
from training.workspace.runtime import open_run


def example(row: int, choices: int, label: int) -> Example:
    return Example(str(row), {"question": "?", "choices": tuple("xyzw"[:choices])}, label, choices)


def test_every_prompt_is_asked_once_and_keeps_its_answer() -> None:
    examples = (example(0, 2, 1), example(1, 3, 0), example(2, 4, 3))
    asked = _prompts(examples)
    assert asked.counts == [2, 6, 4]
    assert len(asked.orders) == len(asked.sources) == 12
    assert len(asked.others) == 9  # each row's own order was asked already
    prompts = [(*examples, *asked.others)[source] for source in asked.sources]
    assert sorted(asked.sources) == list(range(12))
    start = 0
    for row, count in zip(examples, asked.counts, strict=True):
        own = prompts[start : start + count]
        assert asked.orders[start : start + count] == list(option_orders(row.class_count))
        assert own[0] is row
        assert len({tuple(p.fields["choices"]) for p in own}) == count
        assert {p.fields["choices"][p.label] for p in own} == {row.fields["choices"][row.label]}
        start += count


@pytest.fixture(scope="module")
def report(choices_run: FinishedRun) -> dict[str, Any]:
    path = choices_run.config.run_dir / "report" / "evaluation.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_the_report_has_cost_and_gain_of_map_and_of_what_is_served(
    choices_run: FinishedRun, choices_predictor: Predictor, report: dict[str, Any]
) -> None:
    names = {"map", choices_predictor.recommended}
    averaged = {name for name in report if name.endswith("_order_average")}
    assert averaged == {f"{name}_order_average" for name in names}
    text = (choices_run.config.run_dir / "report" / "results.md").read_text(encoding="utf-8")
    prompts = sum((2, 6)[e.class_count > 2] for e in open_run(choices_run.config).splits.test)
    for name in averaged:
        own, got = report[name.removesuffix("_order_average")], report[name]
        gain = OrderGain(**got["order_average"])
        assert gain.prompts == pytest.approx(prompts / got["rows"])
        assert gain.nll_difference == pytest.approx(got["nll"] - own["nll"], abs=1e-12)
        assert gain.accuracy_difference == pytest.approx(got["accuracy"] - own["accuracy"], abs=1e-12)
        assert gain.low <= gain.nll_difference <= gain.high
        assert gain.information > 0
        assert gain.sentence(display_name(name)) in text
        assert f"{gain.prompts:.1f} prompts a row" in text


def test_the_report_measures_what_the_predictor_answers(
    choices_run: FinishedRun, choices_predictor: Predictor, report: dict[str, Any]
) -> None:
    test = open_run(choices_run.config).splits.test
    asked = [choices_predictor.encode_orders(e.fields, truncate=True) for e in test]
    for name in {"map", choices_predictor.recommended}:
        probs = torch.zeros(len(test), 3, dtype=torch.float64)
        for i, answer in enumerate(choices_predictor.predict_orders(asked, name)):
            probs[i, : len(answer.probs)] = torch.tensor(answer.probs)
        got = evaluate_probs(probs, torch.tensor([e.label for e in test]))
        # bfloat16: a probability moves by up to 0.02 with the padding, and these are not small.
        assert got.nll == pytest.approx(report[f"{name}_order_average"]["nll"], abs=0.05)
