"""Temperature scaling of two orders of the choices: fitted on the calibration rows, and served as it was fitted."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from tiny_runs import FinishedRun

from laplora.fitting.calibrate import with_reversed
from laplora.fitting.saving import read_fit
from laplora.predictor import Predictor
from laplora.prompts.examples import Example
from training.workspace.runtime import open_run


def both_orders(predictor: Predictor, example: Example, name: str = "temperature") -> tuple[torch.Tensor, Any]:
    """Return the centred logits of both prompts in the row's own order, (2, choices), and their averaged answer."""
    question = predictor.encode_orders(example.fields, truncate=True)
    each = predictor.predict(question, name)
    logits = torch.tensor([each[0].logit_mean.tolist(), each[1].logit_mean[::-1].tolist()], dtype=torch.float64)
    (answer,) = predictor.average_orders(each)
    return logits, answer


def test_the_recorded_temperature_is_the_best_one_of_the_average_and_is_served(
    choices_run: FinishedRun, choices_predictor: Predictor
) -> None:
    """By a search of our own over the calibration rows' answers, which the server's class gives."""
    found = choices_predictor.artifact.manifest.predictives["temperature"].reversed_temperature
    assert found is not None
    calibration = open_run(choices_run.config).splits.calibration
    logits = [both_orders(choices_predictor, example)[0] for example in calibration]

    def nll(temperature: float) -> float:
        probs = [
            torch.softmax(each / temperature, 1).mean(0)[e.label] for each, e in zip(logits, calibration, strict=True)
        ]
        return -float(torch.stack(probs).log().mean())

    # bfloat16 moves a logit with the padding, and a fit of few rows is held towards 1.
    assert nll(found) < min(nll(found * 2), nll(found / 2)) + 0.02
    single = choices_predictor.artifact.manifest.predictives["temperature"].temperature
    assert found != pytest.approx(single, rel=1e-6)
    # It is served, whether temperature scaling answers or stands beside; MAP has none.
    for name, example in product(("temperature", "map"), open_run(choices_run.config).splits.test[:6]):
        both, answer = both_orders(choices_predictor, example, name)
        arrays = answer.arrays
        beside = arrays.probs if name == "temperature" else arrays.calibrated_probs["temperature"]
        assert beside == pytest.approx(torch.softmax(both / found, 1).mean(0).tolist(), abs=1e-9)
        assert arrays.map_probs == pytest.approx(torch.softmax(both, 1).mean(0).tolist(), abs=1e-6)
        assert answer.orders == 2


def test_rows_without_choices_have_none(sentiment_run: FinishedRun) -> None:
    record = read_fit(sentiment_run.config.run_dir / "laplace").calibrated
    assert record.predictives["temperature"].reversed_temperature is None
    assert with_reversed(record, None) is record
    moved = with_reversed(record, 3.0).predictives["temperature"]
    assert (moved.reversed_temperature, moved.temperature) == (3.0, record.predictives["temperature"].temperature)
