"""What a temperature costs that was not needed, with and without its prior and the bound on the recommendation.

    python -m benchmarks.rules.needless_fits

Two-class models whose labels come from log-odds ``l ~ N(0, deviation^2)`` and whose logit is
``sharpness (l + noise deviation / 3 e)``: a sharpness of 1 without noise is calibrated. The temperature is fitted and
recommended on 150 rows, with ``laplora``'s functions, and judged on 4000 new ones. Ten minutes on one core.
"""

from __future__ import annotations

import argparse
import math

import torch

from laplora.decisions.recommendation import Rule, choose
from laplora.decisions.temperature import PRIOR_ROWS, fit_temperature
from laplora.predictive.cross_fitting import cross_fitted
from training.report.markdown import markdown_table

SPLITS, ROWS, NEW = 150, 150, 4000

#: name -> (deviation, sharpness, noise)
MODELS = {
    "calibrated, 18 % wrong": (3.0, 1.0, 0.0),
    "calibrated, 1.3 % wrong": (41.0, 1.0, 0.0),
    "calibrated, 0.6 % wrong": (85.0, 1.0, 0.0),
    "slightly overconfident": (3.0, 1.4, 0.3),
    "overconfident": (3.0, 2.5, 0.3),
    "overconfident, 3 % wrong": (20.0, 3.0, 0.0),
    "underconfident": (3.0, 0.3, 0.0),
}

#: name -> (weight of the prior in rows, rule: by how many nats over the rows a predictive may be above MAP)
VARIANTS = {
    "neither": (0.0, Rule(cost=math.inf)),
    "bound": (0.0, Rule()),
    "prior": (PRIOR_ROWS, Rule(cost=math.inf)),
    "both": (PRIOR_ROWS, Rule()),
}


def draw(model: tuple[float, float, float], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (rows, 2) and labels (rows,), calibration rows first."""
    deviation, sharpness, noise = model
    normal = torch.randn(2, ROWS + NEW, generator=generator, dtype=torch.float64)
    truth = deviation * normal[0]
    labels = (torch.rand(ROWS + NEW, generator=generator, dtype=torch.float64) < torch.sigmoid(truth)).long()
    logit = sharpness * (truth + noise * deviation / 3 * normal[1])
    return torch.stack([torch.zeros_like(logit), logit], 1), labels


def row_losses(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return (rows,) NLL in nats; from the logits, so that a probability that rounds to 0 costs no infinity."""
    return torch.nn.functional.cross_entropy(logits / temperature, labels, reduction="none")


def one_split(
    logits: torch.Tensor, labels: torch.Tensor, prior_rows: float, rule: Rule
) -> tuple[float, float, float, bool]:
    """Return the temperature, its cross-fitted NLL above MAP's, its new rows' NLL above MAP's, and if it is served."""
    here, there, new, new_labels = logits[:ROWS], labels[:ROWS], logits[ROWS:], labels[ROWS:]
    possible = torch.ones(here.shape, dtype=torch.bool)

    def fit(rows: torch.Tensor) -> float:
        return fit_temperature(here[rows], there[rows], possible[rows], prior_rows=prior_rows)

    crossed = cross_fitted(lambda fitted, scored: row_losses(here[scored], there[scored], fit(fitted)), ROWS)
    at_map = row_losses(here, there, 1.0)
    chosen, _ = choose({"map": at_map, "temperature": crossed}, rule)
    temperature = fit(torch.arange(ROWS))
    cost = row_losses(new, new_labels, temperature) - row_losses(new, new_labels, 1.0)
    return temperature, float((crossed - at_map).mean()), float(cost.mean()), chosen == "temperature"


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(prog="python -m benchmarks.rules.needless_fits", description=__doc__).parse_args()
    heading = ["model", "variant", "least T", "served", "served, >0.01 above MAP", "new NLL to MAP, mean"]
    rows = []
    for name, model in MODELS.items():
        generator = torch.Generator().manual_seed(0)
        splits = [draw(model, generator) for _ in range(SPLITS)]
        for variant, settings in VARIANTS.items():
            results = [one_split(*split, *settings) for split in splits]
            served = [cost for _, _, cost, taken in results if taken]
            above = sum(gap > 0.01 and taken for _, gap, _, taken in results)
            costs = sum(served) / SPLITS, sum(served) / max(1, len(served))
            worst = f"{max(served, default=0.0):+.3f}"
            least = f"{min(t for t, *_ in results):.2f}"
            rows.append([name, variant, least, len(served), above, *(f"{c:+.4f}" for c in costs), worst])
    print(markdown_table([*heading, "served, mean", "worst"], rows, left=(0, 1)))


if __name__ == "__main__":
    main()
