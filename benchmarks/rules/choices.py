"""How often the recommendation is right, on synthetic two-class models.

    python -m benchmarks.rules.choices

A model's logit is ``sharpness (l + noise sqrt(v) e)`` where the labels come from the log-odds ``l``; it is told a
variance that follows ``v`` with the correlation ``quality`` in the logarithm. So it is overconfident by its
sharpness and its noise, and its variance knows more or less about its mistakes. Every choice is made on 100 or 200
calibration rows and judged on 2000 new ones. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch

import laplora.decisions.recommendation as rule
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


@dataclass(frozen=True)
class Sample:
    """Rows of one model: logit difference (rows,), told variance (rows,), labels (rows,)."""

    mean: torch.Tensor
    variance: torch.Tensor
    labels: torch.Tensor


def draw(model: tuple[float, float, float, float], rows: int, generator: torch.Generator) -> Sample:
    """Return rows of a model."""
    deviation, sharpness, noise, quality = model
    normal = torch.randn(4, rows, generator=generator, dtype=torch.float64)
    truth = deviation * normal[0]
    labels = (torch.rand(rows, generator=generator, dtype=torch.float64) < torch.sigmoid(truth)).long()
    mean = sharpness * (truth + noise * (normal[1] / 2).exp() * normal[2])
    told = (quality * normal[1] + math.sqrt(1 - quality**2) * normal[3]).exp()
    return Sample(mean, told, labels)


def losses(sample: Sample, scale: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Return (rows, ...) the NLL of the closed-form predictive, over scales or temperatures."""
    logit = sample.mean[:, None] / temperature / (1 + math.pi / 8 * sample.variance[:, None] * scale).sqrt()
    return torch.nn.functional.softplus(torch.where(sample.labels[:, None] == 1, -logit, logit))


def columns(sample: Sample) -> dict[str, torch.Tensor]:
    """Return every predictive's losses (rows, settings)."""
    one, none = torch.ones(1), torch.zeros(1)
    return {
        "map": losses(sample, none, one),
        "temperature": losses(sample, none, TEMPERATURES),
        "laplace": losses(sample, SCALES, one),
    }


def recommendations(model: tuple[float, float, float, float], rows: int) -> None:
    """Print what each rule gains on new rows."""
    gains = {r: [0.0, 0.0, 0, 0] for r in RULES}
    generator = torch.Generator().manual_seed(0)
    for _ in range(TRIALS):
        calibration, new = (columns(draw(model, n, generator)) for n in (rows, NEW))
        fitted = {
            name: cross_fitted(lambda f, s, c=c: c[s, int(c[f].mean(0).argmin())], rows)  # type: ignore[misc]
            for name, c in calibration.items()
        }
        served = {name: new[name][:, int(calibration[name].mean(0).argmin())] for name in new}
        for r in RULES:
            rule._NESTED_GUARD, rule._CHEAPER, rule._LAPLACE = -r[0], r[1], r[2]
            chosen = served[rule._choose(fitted)[0]]
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
