"""The tables that are dealt from: synthetic models of known behaviour, and a real model's held-out rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmarks.rules.promises.table import Column, Table, column_of
from laplora.jacobians.blocks import Block
from laplora.linearised import contrasts
from laplora.posterior.base import Posterior, Prior, block_precisions
from laplora.predictive.kinds import PREDICTIVES, predictive_probs, predictive_spec
from training.calibration.projected import ProjectedSplit

#: Even in the logarithm, as fine as what is fitted is known from some hundred rows.
TEMPERATURES = torch.logspace(math.log10(0.2), math.log10(20), 41, dtype=torch.float64)
#: Covariances in units of a synthetic model's, none among them.
SCALES = torch.cat([torch.zeros(1), torch.logspace(-2, 2, 33)]).double()
#: Prior precisions of a real posterior.
PRECISIONS = torch.logspace(-2, 8, 61, dtype=torch.float64)


@dataclass(frozen=True)
class Synthetic:
    """A synthetic model.

    Its logits are ``sharpness (f + noise sqrt(v) e)`` where the labels come from softmax(f), f of standard deviation
    ``spread``, and e is normal; it is told the variance v of every row. So it is overconfident by its sharpness and its
    noise, and its variance knows of its mistakes.
    """

    name: str
    classes: int
    spread: float
    sharpness: float
    noise: float


MODELS = (
    Synthetic("2 classes, overconfident", 2, 3.0, 2.0, 0.8),
    Synthetic("2 classes, accurate, overconfident", 2, 9.0, 1.5, 0.5),
    Synthetic("2 classes, calibrated", 2, 4.0, 1.0, 0.0),
    Synthetic("3 classes, overconfident", 3, 3.0, 2.0, 0.8),
    Synthetic("6 classes, overconfident", 6, 4.0, 2.0, 0.8),
)


def synthetic_table(model: Synthetic, rows: int, seed: int) -> Table:
    """Return rows of a synthetic model under MAP, every temperature and every scale of its covariance."""
    g = torch.Generator().manual_seed(seed)
    basis = contrasts(model.classes, torch.float64)
    truth = model.spread * torch.randn(rows, model.classes - 1, generator=g, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(truth @ basis.T, 1), 1, generator=g)[:, 0]
    variance = torch.randn(rows, generator=g, dtype=torch.float64).exp()
    error = torch.randn(rows, model.classes - 1, generator=g, dtype=torch.float64) * variance.sqrt()[:, None]
    mean = model.sharpness * (truth + model.noise * error)
    identity = torch.eye(model.classes - 1, dtype=torch.float64)
    covariance = (model.sharpness * max(model.noise, 0.3)) ** 2 * variance[:, None, None] * identity
    mask = torch.ones(rows, model.classes, dtype=torch.bool)
    mass = torch.rand(rows, generator=g, dtype=torch.float64)
    laplace = [predictive_probs(PREDICTIVES["laplace"], mean[None], scale * covariance[None], mask) for scale in SCALES]
    return Table(points(mean, mask, labels) | {"laplace": column_of(laplace, labels)}, labels, mask, mass)


def real_table(split: ProjectedSplit, posterior: Posterior, blocks: tuple[Block, ...]) -> Table:
    """Return a real model's rows under MAP, every temperature and every scalar prior precision."""
    mean, mask = split.projected.contrast_mean.double(), split.class_mask
    laplace = []
    for precision in PRECISIONS:
        covariance = posterior.covariance(
            split.projected, block_precisions(Prior("scalar", {"all": float(precision)}), blocks)
        )
        laplace.append(predictive_probs(PREDICTIVES["laplace"], mean[None], covariance[None], mask))
    columns = points(mean, mask, split.labels) | {"laplace": column_of(laplace, split.labels)}
    return Table(columns, split.labels, mask, split.label_mass.double())


def points(mean: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> dict[str, Column]:
    """Return MAP and temperature scaling."""
    map_ = predictive_probs(PREDICTIVES["map"], mean[None], None, mask)
    specs = [predictive_spec("temperature", float(t)) for t in TEMPERATURES]
    tempered = [predictive_probs(spec, mean[None], None, mask) for spec in specs]
    return {"map": column_of([map_], labels), "temperature": column_of(tempered, labels)}
