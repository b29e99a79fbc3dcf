"""Lambda against the softmax's dense Hessian. Q is in tests of the predictive and of the Jacobians."""

from __future__ import annotations

import dense_reference as dense
import torch

from laplora.linearised import contrast_hessian, contrasts


def test_hessian_uses_one_softmax_and_survives_vanishing_classes() -> None:
    """Six classes, one at a logit of -60 and one impossible: exact where a Cholesky factor of it would fail."""
    logits = torch.tensor([[0.3, -60.0, 1.0, -0.4, 2.0, 5.0], [80.0, 0.0, -3.0, 1.0, 2.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * 5 + [False], [True] * 6])
    probs = dense.masked_probs(logits, mask)
    q = contrasts(6)
    expected = q.T @ dense.softmax_hessian(probs) @ q
    found = contrast_hessian(logits, mask)
    # Rounding of a 6 x 6 product of numbers below 1.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    twice = q.T @ dense.softmax_hessian(dense.masked_probs(probs, mask)) @ q
    assert (found - twice).abs().max() > 0.05
    assert torch.linalg.eigvalsh(found).min() > -1e-15
