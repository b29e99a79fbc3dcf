"""How often the recommendation is right, on synthetic two-class models: ``python -m benchmarks.rules.choices``.

A model's logit is ``sharpness (l + noise sqrt(v) e)`` where the labels come from the log-odds ``l``; it is told a
variance that follows ``v`` with the correlation ``quality`` in the logarithm. So it is overconfident by its
sharpness and its noise, and its variance knows more or less about its mistakes. Every choice is made on 100 or 200
calibration rows and judged on 2000 new ones. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import math

import torch

from laplora.decisions.recommendation import Rule, choose
from laplora.predictive.cross_fitting import cross_fitted

TRIALS, NEW = 120, 2000
SCALES = torch.cat([torch.zeros(1), torch.logspace(-3, 2, 26)]).double()  # of the covariance: 1 / prior precision
TEMPERATURES = torch.logspace(-1, 1.5, 51, dtype=torch.float64)

#: name -> (deviation of l, sharpness, noise, quality)
MODELS = {
    "calibrated": (3.0, 1.0, 0.0, 0.0),
    "slightly overconfident": (3.0, 1.4, 0.3, 0.5),
    "overconfident, good variance": (3.0, 2.0, 0.8, 0.95),
    "overconfident, telling variance": (4.0, 2.0, 2.0, 0.99),
    "overconfident, empty variance": (3.0, 2.5, 0.3, 0.0),
}

#: (guard: below MAP by at least, cheaper, laplace) in standard errors; the last one is what recommend does.
RULES = [(0.0, 0.0, 0.0), (1.96, 1.0, 1.0), (0.5, 1.0, 1.0), (0.5, 1.0, 0.25), (0.0, 1.0, 0.25), (-1.0, 1.0, 0.25)]


def rule_of(numbers: tuple[float, float, float]) -> Rule:
    """Return the rule of a guard, a margin for cheaper predictives and one for ``laplace``."""
    guard, cheaper, laplace = numbers
    return Rule(nested_guard=-guard, cheaper=cheaper, variance=laplace)


def row_losses(
    model: tuple[float, float, float, float], rows: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Draw rows of a model and return every predictive's NLL (rows, settings), by the closed form."""
    deviation, sharpness, noise, quality = model
    normal = torch.randn(4, rows, generator=generator, dtype=torch.float64)
    truth = deviation * normal[0]
    labels = torch.rand(rows, generator=generator, dtype=torch.float64) < torch.sigmoid(truth)
    mean = sharpness * (truth + noise * (normal[1] / 2).exp() * normal[2])
    told = (quality * normal[1] + math.sqrt(1 - quality**2) * normal[3]).exp()

    def losses(scale: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        logit = mean[:, None] / temperature / (1 + math.pi / 8 * told[:, None] * scale).sqrt()
        return torch.nn.functional.softplus(torch.where(labels[:, None], -logit, logit))

    one, none = torch.ones(1), torch.zeros(1)
    return {"map": losses(none, one), "temperature": losses(none, TEMPERATURES), "laplace": losses(SCALES, one)}


def recommendations(model: tuple[float, float, float, float], rows: int) -> None:
    """Print what each rule gains on new rows."""
    gains = {r: [0.0, 0.0, 0, 0] for r in RULES}
    generator = torch.Generator().manual_seed(0)
    for _ in range(TRIALS):
        calibration, new = (row_losses(model, n, generator) for n in (rows, NEW))
        fitted = {
            name: cross_fitted(lambda f, s, c=c: c[s, int(c[f].mean(0).argmin())], rows)  # type: ignore[misc]
            for name, c in calibration.items()
        }
        served = {name: new[name][:, int(calibration[name].mean(0).argmin())] for name in new}
        for r in RULES:
            chosen = served[choose(fitted, rule_of(r))[0]]
            for i, other in enumerate(("map", "temperature")):
                difference = chosen - served[other]
                gains[r][i] += float(difference.mean()) / TRIALS
                test = difference[:400]  # what a test split of 400 rows could tell
                gains[r][2 + i] += int(test.mean() > 1.96 * test.std() / 20)
    for r, (to_map, to_temperature, worse, behind) in gains.items():
        print(
            f"    guard {r[0]:4.2f}, cheaper {r[1]:4.2f}, laplace {r[2]:4.2f}: NLL {to_map:+.3f} to map, worse beyond "
            f"noise {worse / TRIALS:4.0%}; {to_temperature:+.3f} to temperature, worse {behind / TRIALS:4.0%}"
        )


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(prog="python -m benchmarks.rules.choices", description=__doc__).parse_args()
    for rows in (100, 200):
        for name, model in MODELS.items():
            print(f"{name}, {rows} calibration rows")
            recommendations(model, rows)


if __name__ == "__main__":
    main()
