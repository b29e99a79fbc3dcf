"""What draws of calibration rows are dealt from: rows under every setting that a calibration can choose.

Fitting a temperature or a prior precision is then a choice among columns, so a thousand draws cost what a few would.
The rows are those of synthetic models of known behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from laplora.linearised import PosteriorPredictive, contrasts
from laplora.metrics.scores import row_nll
from laplora.predictive.kinds import PREDICTIVES, predictive_probs, predictive_spec

#: Even in the logarithm, as fine as what is fitted is known from some hundred rows.
TEMPERATURES = torch.logspace(math.log10(0.2), math.log10(20), 41, dtype=torch.float64)
#: Covariances in units of a synthetic model's, none among them.
SCALES = torch.cat([torch.zeros(1), torch.logspace(-2, 2, 33)]).double()


@dataclass(frozen=True)
class Column:
    """One predictive of all rows, at each of its settings.

    Attributes:
        probs, std: (settings, rows, classes); expected_entropy: (settings, rows), nats.
        losses: (settings, rows) NLL, nats.
    """

    probs: torch.Tensor
    std: torch.Tensor
    expected_entropy: torch.Tensor
    losses: torch.Tensor

    def fit(self, rows: torch.Tensor) -> int:
        """Return the setting of least mean NLL on some rows."""
        return int(self.losses[:, rows].mean(1).argmin())

    def at(self, setting: int, rows: torch.Tensor) -> PosteriorPredictive:
        """Return the predictive of some rows at a setting."""
        return PosteriorPredictive(
            self.probs[setting, rows], self.std[setting, rows], self.expected_entropy[setting, rows]
        )


@dataclass(frozen=True)
class Table:
    """Rows of one model.

    Attributes:
        columns: by predictive, ``map`` (one setting) among them.
        labels: (rows,) int64; class_mask: (rows, classes) bool; label_mass: (rows,).
    """

    columns: Mapping[str, Column]
    labels: torch.Tensor
    class_mask: torch.Tensor
    label_mass: torch.Tensor


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
    return _table(mean, [scale * covariance for scale in SCALES], labels, mask, mass)


def _table(
    mean: torch.Tensor,
    covariances: list[torch.Tensor],
    labels: torch.Tensor,
    mask: torch.Tensor,
    label_mass: torch.Tensor,
) -> Table:
    """Return MAP, temperature scaling, and Laplace at each covariance."""
    tempered = [predictive_spec("temperature", float(t)) for t in TEMPERATURES]
    settings = {
        "map": [predictive_probs(PREDICTIVES["map"], mean, None, mask)],
        "temperature": [predictive_probs(spec, mean, None, mask) for spec in tempered],
        "laplace": [predictive_probs(PREDICTIVES["laplace"], mean, c, mask) for c in covariances],
    }
    columns = {
        name: Column(
            torch.stack([one.probs for one in predictives]),
            torch.stack([one.std for one in predictives]),
            torch.stack([one.expected_entropy for one in predictives]),
            torch.stack([row_nll(one.probs, labels) for one in predictives]),
        )
        for name, predictives in settings.items()
    }
    return Table(columns, labels, mask, label_mass)
