"""Maps from logits to probabilities: each finds the truth it can express, and stays calm where labels say nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import generator

from benchmarks.evidence.methods import recalibration
from benchmarks.evidence.methods.recalibration import Fit
from laplora.metrics.scores import nll

OF_MANY: dict[str, Fit] = {
    "temperature": recalibration.temperature,
    "ts_mix": recalibration.smoothed_temperature,
    "ets": recalibration.ensemble_temperature,
    "vector": recalibration.vector,
    "svs": recalibration.structured_vector,
    "sms": recalibration.structured_matrix,
}
OF_TWO: dict[str, Fit] = {"platt": recalibration.platt, "beta": recalibration.beta}

Truth = Callable[[torch.Tensor], torch.Tensor]


def sample(truth: Truth, classes: int, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = generator(seed)
    logits = 3 * torch.randn(rows, classes, generator=draw, dtype=torch.float64)
    return logits, torch.multinomial(truth(logits), 1, generator=draw)[:, 0]


def excess(fit: Fit, truth: Truth, classes: int) -> float:
    """Return the NLL above the truth's, in nats, of a map fitted on many rows."""
    found = fit(*sample(truth, classes, 6000, 0))
    logits, labels = sample(truth, classes, 6000, 1)
    return nll(found(logits), labels) - nll(truth(logits), labels)


@pytest.mark.parametrize("name", OF_MANY)
def test_a_temperature_is_found_by_all(name: str) -> None:
    # The maps have up to 20 numbers: 20 / (2 * 6000) nats are expected above the truth.
    assert abs(excess(OF_MANY[name], lambda z: (z / 2.5).softmax(1), 4)) < 0.006


@pytest.mark.parametrize("name", ["vector", "svs", "sms"])
def test_intercepts_are_found_by_those_that_have_them(name: str) -> None:
    shift = torch.tensor([1.5, 0.0, -1.0], dtype=torch.float64)

    def truth(z: torch.Tensor) -> torch.Tensor:
        return (z / 2 + shift).softmax(1)

    assert abs(excess(OF_MANY[name], truth, 3)) < 0.006
    assert excess(recalibration.temperature, truth, 3) > 0.05


def test_confusions_of_two_classes_are_found_by_the_matrix_alone() -> None:
    mixing = torch.tensor([[0.6, 0.5, 0.0], [0.5, 0.6, 0.0], [0.0, 0.0, 0.8]], dtype=torch.float64)

    def truth(z: torch.Tensor) -> torch.Tensor:
        return (z.log_softmax(1) @ mixing).softmax(1)

    assert abs(excess(OF_MANY["sms"], truth, 3)) < 0.01
    assert excess(OF_MANY["svs"], truth, 3) > 0.03


@pytest.mark.parametrize("name", OF_TWO)
def test_an_affine_map_of_two_classes_is_found(name: str) -> None:
    def truth(z: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros(len(z)), 0.4 * (z[:, 1] - z[:, 0]) - 0.8], 1).double().softmax(1)

    # Beta calibration sees ln p and ln (1 - p), of which an affine map of their difference is one.
    assert abs(excess(OF_TWO[name], truth, 2)) < 0.006


def test_ensemble_temperature_finds_labels_drawn_at_random() -> None:
    def truth(z: torch.Tensor) -> torch.Tensor:
        return 0.8 * z.softmax(1) + 0.2 / z.shape[1]

    # Its temperature is fitted before the weights, so a little of the truth is out of reach.
    assert abs(excess(recalibration.ensemble_temperature, truth, 4)) < 0.02
    assert excess(recalibration.temperature, truth, 4) > 0.03


@pytest.mark.parametrize("name", OF_MANY | OF_TWO)
def test_rows_without_a_mistake_leave_every_probability_above_zero(name: str) -> None:
    classes = 2 if name in OF_TWO else 3
    logits = torch.randn(20, classes, generator=generator(2), dtype=torch.float64)
    found = (OF_MANY | OF_TWO)[name](logits, logits.argmax(1))(5 * logits)
    assert torch.allclose(found.sum(1), torch.ones(20, dtype=torch.float64))
    assert bool((found >= 0).all())
    if name != "vector":  # Guo et al.'s has no penalty, and goes as far as its steps
        assert bool((found > 0).all())
