"""Ours: the calibration labels move the Laplace predictive (``laplora.conditioning``), from Gram matrices.

The kernel between rows is that of the exact GGN posterior of a subset of blocks. The Laplace predictive that the labels
correct is that of all blocks. The mean then moves by ``kappa`` times what its log probabilities do
(``laplora.predictive.shift``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.evidence.methods.base import Answer, Answers
from benchmarks.evidence.methods.laplace import Spectrum, fitted, spectrum
from benchmarks.evidence.outputs import Kernel, Outputs
from laplora.conditioning.choice import BIASES, VARIANCES, Candidate, LabelledRows, choose_kernel, log_contrasts
from laplora.posterior.base import Prior
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.shift import tempering


def conditioned(
    subset: str = "values_b", variances: Sequence[float] = VARIANCES, biases: Sequence[float] = BIASES
) -> Answers:
    """Return the method with a kernel of a subset's Jacobians, and the prior variances that it chooses from."""

    def answer(outputs: Outputs, draw: int) -> Answer:
        rows, test, laplace = outputs.calibration(draw), outputs.test, fitted(outputs, draw, "all")
        mean = log_contrasts(
            posterior_predictive(rows.mean, laplace.calibration, rows.class_mask).probs, rows.class_mask
        )
        tried, cross = _kernels(outputs, draw, subset, variances, biases)
        choice = choose_kernel(tried, LabelledRows(mean, rows.labels, rows.class_mask))
        moved = choice.mode.moved(cross[choice.place])
        moved_mean = test.mean + tempering(laplace.test, test.class_mask) * moved
        return Answer(posterior_predictive(moved_mean, laplace.test, test.class_mask).probs)

    return answer


def _kernels(
    outputs: Outputs, draw: int, subset: str, variances: Sequence[float], biases: Sequence[float]
) -> tuple[list[Candidate], list[torch.Tensor]]:
    """Return the kernels to choose from between a draw's rows, and those between the test rows and them."""
    kernel, of, places = outputs.kernel(subset), spectrum(outputs, subset), outputs.draws[draw]
    rows, width = len(places), kernel.contrasts
    test = torch.arange(len(outputs.pool), len(outputs.pool) + len(outputs.test))
    unit = float(kernel.diagonal[kernel.train + places].double().diagonal(dim1=1, dim2=2).mean())
    same = torch.eye(width, dtype=torch.float64)
    tried, cross = [], []
    for bias in biases:
        for variance in variances:
            own = _between(kernel, of, places, places, unit / variance) + bias * same[None, :, None]
            others = _between(kernel, of, test, places, unit / variance) + bias * same[None, :, None]
            tried.append(Candidate(Prior("scalar", {"all": unit / variance}), bias, own))
            cross.append(others)
    assert tried[0].kernel.shape == (rows, width, rows, width)
    return tried, cross


def _between(kernel: Kernel, of: Spectrum, left: torch.Tensor, right: torch.Tensor, precision: float) -> torch.Tensor:
    """Return the posterior kernel, (left, contrasts, right, contrasts) float64; test rows follow the pool's."""
    plain = kernel.gram[kernel.places(right)][:, kernel.places(left)].T.double()
    seen_left, seen_right = (of.projected[part].double().flatten(0, 1) for part in (left, right))
    shrunk = (seen_left / (of.values + precision)) @ seen_right.T
    c = kernel.contrasts
    return ((plain - shrunk) / precision).view(len(left), c, len(right), c)
