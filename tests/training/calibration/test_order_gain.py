"""The report's order averages: the same as the predictor's own, with their cost and gain beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from alike_runs import read
from tiny_runs import FinishedRun

from laplora.metrics.scores import evaluate_probs
from laplora.predictor import Predictor
from laplora.report.names import display_name
from training.calibration.order_average import OrderGain
from training.workspace.runtime import open_run


@pytest.fixture(scope="module")
def report(choices_run: FinishedRun) -> dict[str, Any]:
    return read(choices_run.config.run_dir / "report" / "evaluation.json")  # type: ignore[no-any-return]


def test_the_report_has_cost_and_gain_of_map_and_of_what_is_served(
    choices_run: FinishedRun, choices_predictor: Predictor, report: dict[str, Any]
) -> None:
    names = {"map", "temperature", choices_predictor.recommended}
    averaged = {name for name in report if name.endswith("_order_average")}
    assert averaged == {f"{name}_order_average" for name in names}
    text = (choices_run.config.run_dir / "report" / "results.md").read_text(encoding="utf-8")
    for name in averaged:
        own, got = report[name.removesuffix("_order_average")], report[name]
        gain = OrderGain(**got["order_average"])
        assert gain.nll_difference == pytest.approx(got["nll"] - own["nll"], abs=1e-12)
        assert gain.accuracy_difference == pytest.approx(got["accuracy"] - own["accuracy"], abs=1e-12)
        assert gain.low <= gain.nll_difference <= gain.high
        assert gain.information > 0
        assert gain.sentence(display_name(name)) in text


def test_the_report_measures_what_the_predictor_answers(
    choices_run: FinishedRun, choices_predictor: Predictor, report: dict[str, Any]
) -> None:
    test = open_run(choices_run.config).splits.test
    asked = [choices_predictor.encode_orders(e.fields, truncate=True) for e in test]
    for name in {"map", "temperature", choices_predictor.recommended}:
        probs = torch.zeros(len(test), 3, dtype=torch.float64)
        each = choices_predictor.predict([row for question in asked for row in question], name)
        for i, answer in enumerate(choices_predictor.average_orders(each)):
            probs[i, : len(answer.probs)] = torch.tensor(answer.probs)
        got = evaluate_probs(probs, torch.tensor([e.label for e in test]))
        # bfloat16: a probability moves by up to 0.02 with the padding, and these are not small.
        assert got.nll == pytest.approx(report[f"{name}_order_average"]["nll"], abs=0.05)
