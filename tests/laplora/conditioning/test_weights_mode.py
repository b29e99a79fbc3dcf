"""The mode over the weights against the mode by the kernel's matrix."""

from __future__ import annotations

import pytest
import torch
from conditioning_rows import moved_rows, several_rows

from laplora.conditioning import weights_mode
from laplora.conditioning.choice import candidates
from laplora.conditioning.kernel import Kernel
from laplora.conditioning.mode import posterior_mode
from laplora.conditioning.weights_mode import mode_weights
from laplora.errors import DataError, FactorizationError, NonFiniteError

#: Objective left at the mode, nats a row, at which its unknowns agree to about the root of this.
CLOSE = 1e-18


@pytest.mark.parametrize("place", [0, 3, 6, 10, 13])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_mode_by_the_matrix(place: int, masked: bool) -> None:
    """From the narrowest kernel to the widest, with a constant and without, with fewer possible classes too."""
    states, rows, _ = moved_rows(1.0, count=60, classes=6, masked=masked)
    layer = states.layer()
    kernel = candidates(layer)[place]
    expected = posterior_mode(kernel.dense(), rows.mean, rows.labels, rows.class_mask)
    # Its own convergence leaves an objective of 1e-10 nats a row, and alpha the root of that away.
    weights, alpha = mode_weights(kernel, rows.mean, rows.labels, rows.class_mask, converged=CLOSE)
    torch.testing.assert_close(alpha, expected.alpha, rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.mean + kernel.contrasts(weights), expected.contrasts, rtol=0, atol=1e-5)
    # And the mode is where the weights are those of alpha.
    torch.testing.assert_close(kernel.weights(alpha), weights, rtol=0, atol=1e-8)


def test_several_labels_of_an_input() -> None:
    """Binary rows of one input share its state."""
    states, rows = several_rows(1.0)
    layer = states.layer()
    kernel = candidates(layer, together=rows.together)[11]
    expected = posterior_mode(kernel.dense(), rows.mean, rows.labels, rows.class_mask)
    _, alpha = mode_weights(kernel, rows.mean, rows.labels, rows.class_mask, converged=CLOSE)
    torch.testing.assert_close(alpha, expected.alpha, rtol=0, atol=1e-5)


def test_start_changes_the_way_and_not_the_result() -> None:
    """From the alpha of a far narrower kernel the same mode is found; also of rows that are sure and wrong."""
    states, rows, _ = moved_rows(1.0, classes=6)
    layer, mean = states.layer(), rows.mean.clone()
    wide, narrow = Kernel(layer, layer.variance / 10, 0.5), Kernel(layer, layer.variance / 0.03)
    _, start = mode_weights(narrow, mean, rows.labels, rows.class_mask)
    found = [mode_weights(wide, mean, rows.labels, rows.class_mask, begin, CLOSE)[0] for begin in (None, start)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-7)
    mean[:20] *= 400
    weights, alpha = mode_weights(wide, mean, rows.labels, rows.class_mask, converged=CLOSE)
    torch.testing.assert_close(wide.weights(alpha), weights, rtol=0, atol=1e-6)


def test_no_variance_moves_nothing() -> None:
    """A kernel of 0 leaves the contrasts, and alpha says what the labels would ask."""
    states, rows, _ = moved_rows(1.0)
    layer = states.layer()
    weights, alpha = mode_weights(Kernel(layer, torch.inf), rows.mean, rows.labels, rows.class_mask)
    assert not bool(weights.any())
    assert bool(alpha.any())


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and values by name; a mode that is not found is no answer."""
    states, rows, _ = moved_rows(1.0)
    layer = states.layer()
    kernel = Kernel(layer, 1.0)
    with pytest.raises(DataError):
        mode_weights(kernel, rows.mean, rows.labels + 9, rows.class_mask)
    with pytest.raises(NonFiniteError, match="logits"):
        mode_weights(kernel, rows.mean * torch.nan, rows.labels, rows.class_mask)
    monkeypatch.setattr(weights_mode, "_STEPS", 1)
    with pytest.raises(FactorizationError, match="not found"):
        mode_weights(kernel, rows.mean, rows.labels, rows.class_mask)
