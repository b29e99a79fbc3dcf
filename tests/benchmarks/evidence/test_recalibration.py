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


SHIFT = torch.tensor([1.5, 0.0, -1.0], dtype=torch.float64)
CONFUSED = torch.tensor([[0.6, 0.5, 0.0], [0.5, 0.6, 0.0], [0.0, 0.0, 0.8]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("truth", "classes", "names", "tolerance", "blind"),
    [
        # The maps have up to 20 numbers: 20 / (2 * 6000) nats are expected above the truth.
        (lambda z: (z / 2.5).softmax(1), 4, [*OF_MANY], 0.006, None),
        (lambda z: (z / 2 + SHIFT).softmax(1), 3, ["vector", "svs", "sms"], 0.006, "temperature"),
        (lambda z: (z.log_softmax(1) @ CONFUSED).softmax(1), 3, ["sms"], 0.01, "svs"),
        # Labels drawn at random. Its temperature is fitted before the weights, so a little is out of reach.
        (lambda z: 0.8 * z.softmax(1) + 0.2 / 4, 4, ["ets"], 0.02, "temperature"),
        # Beta calibration sees ln p and ln (1 - p), of which an affine map of their difference is one.
        (
            lambda z: torch.stack([0 * z[:, 0], 0.4 * (z[:, 1] - z[:, 0]) - 0.8], 1).softmax(1),
            2,
            [*OF_TWO],
            0.006,
            None,
        ),
    ],
    ids=["temperature", "intercepts", "two classes confused", "labels at random", "affine"],
)
def test_a_map_finds_the_truth_that_it_can_express_and_no_other(
    truth: Truth, classes: int, names: list[str], tolerance: float, blind: str | None
) -> None:
    for name in names:
        assert abs(excess((OF_MANY | OF_TWO)[name], truth, classes)) < tolerance, name
    assert blind is None or excess(OF_MANY[blind], truth, classes) > 0.03


@pytest.mark.parametrize("name", OF_MANY | OF_TWO)
def test_rows_without_a_mistake_leave_every_probability_above_zero(name: str) -> None:
    classes = 2 if name in OF_TWO else 3
    logits = torch.randn(20, classes, generator=generator(2), dtype=torch.float64)
    found = (OF_MANY | OF_TWO)[name](logits, logits.argmax(1))(5 * logits)
    assert torch.allclose(found.sum(1), torch.ones(20, dtype=torch.float64))
    assert bool((found >= 0).all())
    if name != "vector":  # Guo et al.'s has no penalty, and goes as far as its steps
        assert bool((found > 0).all())
