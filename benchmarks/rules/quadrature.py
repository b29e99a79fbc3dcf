"""Error of the two-class predictive mean against arbitrary precision: ``python -m benchmarks.rules.quadrature``.

Gauss-Hermite rules of several sizes, a trapezoid rule of 257 nodes, and what the library does.
"""

from __future__ import annotations

import argparse
from typing import Any

import mpmath
import numpy as np
import torch

from laplora.predictive.gaussian import posterior_predictive
from training.report.markdown import markdown_table

MEANS = (0.0, 1.0, -4.0, -15.0)
VARIANCES = (1e-2, 1.0, 1e2, 1e3, 1e4)
#: The trapezoid rule's, 8.5 deviations on either side.
POINTS = np.linspace(-8.5, 8.5, 257)
#: name -> (points, weights) of a standard normal.
RULES = {f"GH {nodes}": np.polynomial.hermite_e.hermegauss(nodes) for nodes in (32, 64, 256)} | {
    "trapezoid 257": (POINTS, np.exp(-(POINTS**2) / 2))
}


def truth(mean: float, variance: float) -> float:
    """Return the mean of sigmoid(z), z ~ N(mean, variance), by mpmath at 30 digits."""
    mpmath.mp.dps = 30
    deviation = mpmath.sqrt(variance)

    def integrand(t: mpmath.mpf) -> mpmath.mpf:
        return mpmath.npdf(t) / (1 + mpmath.exp(-(mean + deviation * t)))

    step = -mean / deviation  # where the sigmoid turns, the integrand is steepest
    points = sorted({mpmath.mpf(-14), mpmath.mpf(14), *(max(min(step + d / deviation, 14), -14) for d in (-30, 0, 30))})
    return float(mpmath.quad(integrand, points))


def by_rule(mean: float, variance: float, points: Any, weights: Any) -> float:
    """Return the same by a weighted sum over points of a standard normal."""
    values = 0.5 * (1 + np.tanh((mean + variance**0.5 * points) / 2))
    return float((weights * values).sum() / weights.sum())


def library(mean: float, variance: float) -> float:
    """Return the same by laplora; the first contrast is the logit difference over the square root of 2."""
    contrast = torch.tensor([[mean / 2**0.5]], dtype=torch.float64)
    covariance = torch.tensor([[[variance / 2]]], dtype=torch.float64)
    probs = posterior_predictive(contrast, covariance, torch.ones(1, 2, dtype=torch.bool)).probs
    return float(probs[0, 0])


def main() -> None:
    """Print the largest error over the means, per variance and rule."""
    argparse.ArgumentParser(prog="python -m benchmarks.rules.quadrature", description=__doc__).parse_args()
    rows = []
    for variance in VARIANCES:
        exact = {mean: truth(mean, variance) for mean in MEANS}
        errors = [max(abs(by_rule(m, variance, *rule) - e) for m, e in exact.items()) for rule in RULES.values()]
        errors.append(max(abs(library(m, variance) - e) for m, e in exact.items()))
        rows.append([f"{variance:g}", *(f"{e:.0e}" for e in errors)])
    print(markdown_table(["variance", *RULES, "laplora"], rows))


if __name__ == "__main__":
    main()
