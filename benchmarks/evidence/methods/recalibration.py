"""Maps from logits to calibrated probabilities, fitted on labelled rows; log probabilities are logits too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import optimize
from torch.nn import functional as F

from laplora.decisions.temperature import fit_temperature

#: (rows, classes) float64 to (rows, classes) probabilities.
Map = Callable[[torch.Tensor], torch.Tensor]
#: From calibration logits (rows, classes) and labels (rows,) to the map.
Fit = Callable[[torch.Tensor, torch.Tensor], Map]


def temperature(logits: torch.Tensor, labels: torch.Tensor) -> Map:
    """Fit temperature scaling (Guo et al., arXiv 1706.04599), as laplora does."""
    fitted = fit_temperature(logits, labels, torch.ones_like(logits, dtype=torch.bool))
    return lambda z: (z / fitted).softmax(1)


def smoothed_temperature(logits: torch.Tensor, labels: torch.Tensor) -> Map:
    """Fit a temperature, and give the uniform distribution a weight of one row among n + 1.

    As ``ts-mix`` of probmetrics, the first step of structured matrix scaling (Berta et al., arXiv 2511.03685).
    """
    inner, weight = temperature(logits, labels), 1 / (len(labels) + 1)
    return lambda z: (1 - weight) * inner(z) + weight / z.shape[1]


def ensemble_temperature(logits: torch.Tensor, labels: torch.Tensor) -> Map:
    """Fit ensemble temperature scaling: softmax at a temperature, softmax as it is, and uniform (arXiv 2003.07329).

    The temperature is fitted first, then the three weights by the NLL, as there (Zhang et al., section 3.2).
    """
    inner = temperature(logits, labels)

    def parts(z: torch.Tensor) -> torch.Tensor:
        return torch.stack([inner(z), z.softmax(1), torch.full_like(z, 1 / z.shape[1])])

    of_label = parts(logits).gather(2, labels[None, :, None].expand(3, -1, 1))[:, :, 0]

    def loss(free: torch.Tensor) -> torch.Tensor:
        return -(free.softmax(0) @ of_label).clamp_min(1e-300).log().mean()

    # The logits of the weights start at nearly temperature scaling alone; they stay in a box, where a weight is 0.
    weights = torch.tensor(minimise(loss, np.array([4.0, 0.0, 0.0]), bounds=[(-12.0, 12.0)] * 3)).softmax(0)
    return lambda z: torch.einsum("k,knc->nc", weights, parts(z))


def vector(logits: torch.Tensor, labels: torch.Tensor) -> Map:
    """Fit vector scaling without a penalty (Guo et al.): a factor and an intercept of each class."""
    classes = logits.shape[1]
    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    found = torch.tensor(
        minimise(lambda w: F.cross_entropy(logits * w[:classes] + w[classes:], labels), start, steps=100)
    )
    return lambda z: (z * found[:classes] + found[classes:]).softmax(1)


def structured_vector(logits: torch.Tensor, labels: torch.Tensor) -> Map:
    """Fit structured vector scaling (Berta et al., arXiv 2511.03685), with its default ridge of classes / rows."""
    return _structured(logits, labels, off_diagonal=False)


def structured_matrix(logits: torch.Tensor, labels: torch.Tensor) -> Map:
    """Fit structured matrix scaling (Berta et al., arXiv 2511.03685), with its default ridges.

    The log probabilities of ``smoothed_temperature`` go through a matrix and an intercept, both near the identity. For
    k classes and n rows the penalties are k / n times the squares of intercept and diagonal, and k (k - 1) / n times
    those off the diagonal.
    """
    return _structured(logits, labels, off_diagonal=True)


def _structured(logits: torch.Tensor, labels: torch.Tensor, *, off_diagonal: bool) -> Map:
    inner = smoothed_temperature(logits, labels)
    rows, classes = logits.shape
    inputs = inner(logits).log()
    diagonal = torch.eye(classes, dtype=torch.float64)
    weight = diagonal * classes + (1 - diagonal) * classes * (classes - 1)
    mask = torch.ones_like(diagonal) if off_diagonal else diagonal

    def parts(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return w[classes:].view(classes, classes) * mask, w[:classes]

    def loss(w: torch.Tensor) -> torch.Tensor:
        change, intercept = parts(w)
        penalty = (weight * change.square()).sum() + classes * intercept.square().sum()
        return F.cross_entropy(inputs + inputs @ change.T + intercept, labels) + penalty / rows

    change, intercept = parts(torch.tensor(minimise(loss, np.zeros(classes * (classes + 1)))))

    def calibrated(z: torch.Tensor) -> torch.Tensor:
        inputs = inner(z).log()
        return (inputs + inputs @ change.T + intercept).softmax(1)

    return calibrated


def platt(logits: torch.Tensor, labels: torch.Tensor) -> Map:
    """Fit Platt scaling of two classes: an affine map of the logit difference, with Platt's softened labels (1999)."""
    difference, positives = _difference(logits), labels.sum()
    negatives = len(labels) - positives
    targets = torch.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2)).double()

    def loss(w: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(w[0] * difference + w[1], targets)

    slope, intercept = minimise(loss, np.array([1.0, 0.0]))
    return lambda z: _of_two(slope * _difference(z) + intercept)


def beta(logits: torch.Tensor, labels: torch.Tensor) -> Map:
    """Fit beta calibration of two classes (Kull et al., 2017): ``a ln p - b ln(1 - p) + c`` with a, b of at least 0.

    A ridge of one row's weight towards the identity keeps it finite where no calibration row is wrong.
    """

    def of(z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        logs = z.log_softmax(1)
        return w[0] * logs[:, 1] - w[1] * logs[:, 0] + w[2]

    identity = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)

    def loss(w: torch.Tensor) -> torch.Tensor:
        ridge = (w - identity).square().sum() / (2 * len(labels))
        return F.binary_cross_entropy_with_logits(of(logits, w), labels.double()) + ridge

    bounds = [(0.0, None), (0.0, None), (None, None)]
    found = torch.tensor(minimise(loss, identity.numpy().copy(), bounds=bounds))
    return lambda z: _of_two(of(z, found))


def minimise(
    loss: Callable[[torch.Tensor], torch.Tensor],
    start: np.ndarray,  # type: ignore[type-arg]
    *,
    bounds: Sequence[tuple[float | None, float | None]] | None = None,
    steps: int = 1000,
) -> np.ndarray:  # type: ignore[type-arg]
    """Return the minimiser of a smooth loss of a float64 vector, by L-BFGS within bounds."""

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:  # type: ignore[type-arg]
        w = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        value = loss(w)
        value.backward()  # type: ignore[no-untyped-call]
        assert w.grad is not None
        return float(value.detach()), w.grad.numpy()

    found = optimize.minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps, "gtol": 1e-7}
    )
    return np.asarray(found.x)


def _difference(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 1] - logits[:, 0]


def _of_two(logit: torch.Tensor) -> torch.Tensor:
    return torch.stack([(-logit).sigmoid(), logit.sigmoid()], 1)
