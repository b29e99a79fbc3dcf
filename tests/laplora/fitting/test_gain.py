"""The gain over temperature scaling: the difference of two mean NLLs, with an interval of the paired rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_calibrate import outputs

from laplora.fitting.calibrate import predictive_of
from laplora.fitting.evaluation import Gain, gain_over_temperature
from laplora.metrics.scores import row_nll
from laplora.predictive.kinds import PredictiveName

TEMPERATURES: dict[PredictiveName, float] = {"map": 1.0, "temperature": 2.5, "laplace": 1.0}


def losses(name: PredictiveName) -> torch.Tensor:
    return row_nll(predictive_of(outputs(), name, TEMPERATURES[name]).probs, outputs().split.labels)


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("name", ["map", "laplace"])
def test_it_is_the_difference_of_the_nlls_within_its_interval(name: PredictiveName, together: int) -> None:
    """Where three labels of an input may be right, the interval is that of the ten inputs' means."""
    found = replace(outputs(), split=replace(outputs().split, together=together))
    gain = gain_over_temperature(found, TEMPERATURES, name)
    assert gain is not None
    differences = (losses(name) - losses("temperature")).view(-1, together).mean(1)
    assert gain.difference == pytest.approx(float(differences.mean()))
    error = float(differences.std()) / len(differences) ** 0.5
    # A bootstrap's percentiles are near the normal ones: within a third on 30 rows.
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * error, rel=1 / 3)
    assert gain.low < gain.difference < gain.high


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-0.2, -0.01, "better"), (0.01, 0.2, "worse"), (-0.1, 0.1, "within noise")]
)
def test_an_interval_that_excludes_0_decides(low: float, high: float, verdict: str) -> None:
    assert str(Gain("laplace", (low + high) / 2, low, high)).endswith(verdict)
    for name, temperatures in (("temperature", TEMPERATURES), ("map", {"map": 1.0})):
        assert gain_over_temperature(outputs(), temperatures, name) is None  # type: ignore[arg-type]
