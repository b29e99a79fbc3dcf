"""A predictive covariance without Jacobians: kernel ridge regression on a forward pass's states.

It is distilled (Hinton, Vinyals and Dean, arXiv 1503.02531) from the exact covariances of some inputs, which need no
labels. Its matrix logarithm is predicted, so that every prediction is a covariance:

    ``log V(x) = mean + sum_i c_i exp(-|z(x) - z_i|^2 / 2)``

with ``z`` the states of some layers, each at unit root mean square, in their leading principal directions, beside a few
scalars: the contrasts' mean, its norm, the states' norms and the number of tokens. ``distilled_error`` says how far off
a prediction may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from laplora.errors import DataError
from laplora.jacobians.states import States
from laplora.metrics.checks import check_finite
from laplora.predictive.distilled_error import KernelError, fit_kernel_error, left_out, log_traces, regularised_factor

#: Principal directions of the states that are kept, at most.
_DIRECTIONS = 64
#: Root mean square of a point in the principal directions, in units of a scalar's standard deviation.
_SPREAD = 4.0
#: The grid of the search: squared lengths of the kernel in units of the median squared distance, and ridges.
_LENGTHS, _RIDGES = (0.25, 0.5, 1.0, 2.0), (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
#: Smallest eigenvalue of a covariance, relative to its largest, whose logarithm is taken as it is.
_FLOOR = 1e-6
_FOLDS = 5
#: Inputs that a fit uses at most; of more, a random subset.
MOST_INPUTS = 1500
#: Number format in which directions and support are kept; the coefficients are fitted to the rounded ones.
_KEPT = torch.float16
#: Names of a predictor's tensors.
TENSORS = ("center", "directions", "scalar_center", "scalar_scale", "support", "coefficients", "mean")


@dataclass(frozen=True)
class Estimate:
    """A predicted covariance and its error; float64.

    Attributes:
        covariance: (batch, classes - 1, classes - 1), of the contrasts, nats squared.
        log_error: (batch,), one standard deviation of its logarithm's error.
    """

    covariance: torch.Tensor
    log_error: torch.Tensor


@dataclass(frozen=True)
class DistilledCovariance:
    """A fitted predictor of the contrasts' covariance.

    Attributes:
        layers: decoder layers whose states are its inputs.
        center: (layers * hidden,); directions: (layers * hidden, kept): ``(x - center) directions``.
        scalar_center, scalar_scale: (scalars,), likewise.
        support: (inputs, kept + scalars), ``z_i``.
        coefficients: (inputs, entries), ``c_i``: the upper triangle of a (classes - 1) square matrix, row by row.
        mean: (entries,).
        error: how far off its logarithm is, row by row.
    """

    layers: tuple[int, ...]
    center: torch.Tensor
    directions: torch.Tensor
    scalar_center: torch.Tensor
    scalar_scale: torch.Tensor
    support: torch.Tensor
    coefficients: torch.Tensor
    mean: torch.Tensor
    error: KernelError

    def estimate(self, states: States) -> Estimate:
        """Return the predicted covariance (batch, classes - 1, classes - 1), nats^2, and its error."""
        kernel = self._kernel(states)
        covariance = from_logarithms(kernel @ self.coefficients.double() + self.mean.double())
        return Estimate(covariance, self.error.log_error(self.error.variance(kernel)))

    def _kernel(self, states: States) -> torch.Tensor:
        points = _points(*_features(states), self.center, self.directions, self.scalar_center, self.scalar_scale)
        return gaussian_kernel(points, self.support)


@dataclass(frozen=True)
class Distillation:
    """A fit.

    Attributes:
        predictor: from all inputs.
        held_out: (inputs, classes - 1, classes - 1) float64, each input's covariance predicted from inputs of other
            groups; where not all inputs were used, that of an unused one from all that were.
    """

    predictor: DistilledCovariance
    held_out: torch.Tensor


def distill(
    states: States,
    covariances: torch.Tensor,
    groups: torch.Tensor,
    layers: tuple[int, ...],
    seed: int,
    class_mask: torch.Tensor,
) -> Distillation:
    """Return the predictor of covariances that errs least, in the entries of ``log V``, on inputs held out of its fit.

    The kernel's length and the ridge are chosen by cross-validation. The error is learnt from each calibration row left
    out of the fit. These rows have no part in the principal directions, along which they would look more familiar than
    new rows.

    Args:
        states: of the inputs; covariances: (inputs, classes - 1, classes - 1), their exact ones, nats squared.
        groups: (inputs,) int64; inputs of a group are variants of one another, and are held out together.
        layers: where the states are from; seed: of the folds.
        class_mask: (calibration rows, classes) bool, the possible classes of the first inputs, which are those rows.

    Raises:
        DataError: shapes that do not fit, fewer than five groups, no calibration row or one with variants, or no two
            inputs beside them.
        NonFiniteError: NaN or infinity in a state or covariance.
    """
    count = len(states)
    if covariances.shape[0] != count or groups.shape != (count,):
        raise DataError(f"{count} states, {len(covariances)} covariances and {len(groups)} groups do not fit together")
    check_finite(states.hidden, "a state to distil from")
    check_finite(covariances, "a covariance to distil from")
    first = len(class_mask)
    if not 1 <= first <= count - 2 or bool((torch.bincount(groups)[groups[:first]] > 1).any()):
        raise DataError(
            f"{first} calibration rows of {count} inputs: at least one is needed, two inputs beside them, and no "
            "variants of them"
        )
    generator = torch.Generator().manual_seed(seed)
    if count > MOST_INPUTS:
        chosen = torch.randperm(count, generator=generator)[:MOST_INPUTS].sort().values
        masks = class_mask[chosen[chosen < first]]
        fit = distill(states.take(chosen), covariances[chosen], groups[chosen], layers, seed, masks)
        held_out = fit.predictor.estimate(states).covariance
        held_out[chosen] = fit.held_out
        return Distillation(fit.predictor, held_out)
    names, owner = torch.unique(groups, return_inverse=True)
    if len(names) < _FOLDS:
        raise DataError(f"{len(names)} different inputs are too few to hold some out: use at least {_FOLDS}")
    entries = logarithms(covariances)
    shape, scalars = _features(states)
    center, scalar_center = shape[first:].mean(0), scalars.mean(0)
    deviation = scalars.std(0)
    scalar_scale = torch.where(deviation > 1e-6, 1 / deviation.clamp_min(1e-6), 0.0)
    directions = _principal(shape[first:] - center).to(_KEPT)
    unscaled = _points(shape, scalars, center, directions, scalar_center, scalar_scale)
    distances = torch.cdist(unscaled, unscaled).square()
    median = distances[~torch.eye(count, dtype=torch.bool)].median().clamp_min(1e-12)
    fold = torch.randperm(len(names), generator=generator)[owner] % _FOLDS

    def error(length: float, ridge: float) -> float:
        scaled = (distances / (median * length) / -2).exp()
        return float((_held_out(scaled, ridge, entries, fold) - entries).square().sum())

    length, ridge = min(product(_LENGTHS, _RIDGES), key=lambda pair: error(*pair))
    root = float((median * length).rsqrt())
    directions, scalar_scale = (directions.double() * root).to(_KEPT), scalar_scale * root
    support = _points(shape, scalars, center, directions, scalar_center, scalar_scale).to(_KEPT)
    kernel = gaussian_kernel(support.double(), support)
    coefficients, mean = _solve(kernel, ridge, entries)
    coefficients, mean = coefficients.float(), mean.float()
    predictor = DistilledCovariance(
        layers=layers,
        center=center.float(),
        directions=directions,
        scalar_center=scalar_center.float(),
        scalar_scale=scalar_scale.float(),
        support=support,
        coefficients=coefficients,
        mean=mean,
        error=_kernel_error(kernel, ridge, coefficients, mean, class_mask),
    )
    return Distillation(predictor, from_logarithms(_held_out(kernel, ridge, entries, fold)))


def logarithms(covariances: torch.Tensor) -> torch.Tensor:
    """Return the entries of the matrix logarithms of (batch, d, d), the upper triangle row by row, float64.

    Eigenvalues below a millionth of a matrix's largest, or of the largest of all where it is 0, count as that.
    """
    values, vectors = torch.linalg.eigh(covariances.double())
    largest = values[:, -1:].clamp_min(_FLOOR * float(values.max()) + torch.finfo(torch.float64).tiny)
    logs = values.maximum(_FLOOR * largest).log()
    full = (vectors * logs[:, None, :]) @ vectors.mT
    rows, columns = torch.triu_indices(*full.shape[1:])
    entries: torch.Tensor = full[:, rows, columns]
    return entries


def from_logarithms(entries: torch.Tensor) -> torch.Tensor:
    """Return the covariances (batch, d, d) float64 whose ``logarithms`` the entries are."""
    size = round(((8 * entries.shape[1] + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.triu_indices(size, size)
    full = entries.new_zeros(len(entries), size, size, dtype=torch.float64)
    full[:, rows, columns] = full[:, columns, rows] = entries.double()
    values, vectors = torch.linalg.eigh(full)
    covariances: torch.Tensor = (vectors * values.exp()[:, None, :]) @ vectors.mT
    return covariances


def _kernel_error(
    kernel: torch.Tensor, ridge: float, coefficients: torch.Tensor, mean: torch.Tensor, class_mask: torch.Tensor
) -> KernelError:
    """Return the error of a fit, learnt from each of its first inputs left out."""
    factor = regularised_factor(kernel, ridge)
    first = len(class_mask)
    errors, variances = left_out(factor, coefficients, first)
    # What was fitted: (K + ridge I) coefficients is it less its mean.
    fitted = kernel[:first].double() @ coefficients.double() + ridge * coefficients[:first].double() + mean.double()
    exact, predicted = (log_traces(from_logarithms(e), class_mask) for e in (fitted, fitted - errors))
    return fit_kernel_error(factor, ridge, predicted - exact, variances)


def _features(states: States) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states at unit root mean square, (batch, layers * hidden), and the scalars, (batch, scalars)."""
    hidden, mean = states.hidden.double(), states.contrast_mean.double()
    size = hidden.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
    norm, tokens = mean.norm(dim=1, keepdim=True), states.tokens.double().log()[:, None]
    return (hidden / size).flatten(1), torch.cat([mean, norm, size[..., 0].log(), tokens], 1)


def _principal(shape: torch.Tensor) -> torch.Tensor:
    """Return the leading directions of centred points, (size, kept), scaled to points of the root mean square."""
    _, values, directions = torch.linalg.svd(shape, full_matrices=False)
    kept = min(_DIRECTIONS, int((values > 1e-9 * values[0].clamp_min(1e-300)).sum()))
    directions = directions[:kept].T
    size = float((shape @ directions).square().sum(1).mean().sqrt()) if kept else 1.0
    scaled: torch.Tensor = directions * (_SPREAD / max(size, 1e-12))
    return scaled


def _points(
    shape: torch.Tensor,
    scalars: torch.Tensor,
    center: torch.Tensor,
    directions: torch.Tensor,
    scalar_center: torch.Tensor,
    scalar_scale: torch.Tensor,
) -> torch.Tensor:
    along = (shape - center.double()) @ directions.double()
    return torch.cat([along, (scalars - scalar_center.double()) * scalar_scale.double()], 1)


def gaussian_kernel(points: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
    kernel: torch.Tensor = (torch.cdist(points.double(), support.double()).square() / -2).exp()
    return kernel


def _solve(kernel: torch.Tensor, ridge: float, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = entries.mean(0)
    regular = kernel + ridge * torch.eye(len(kernel), dtype=kernel.dtype)
    return torch.linalg.solve(regular, entries - mean), mean


def _held_out(kernel: torch.Tensor, ridge: float, entries: torch.Tensor, fold: torch.Tensor) -> torch.Tensor:
    """Return the entries of every input, predicted from those of the other folds."""
    predicted = torch.zeros_like(entries)
    for number in range(_FOLDS):
        held, kept = (fold == number).nonzero()[:, 0], (fold != number).nonzero()[:, 0]
        coefficients, mean = _solve(kernel[kept][:, kept], ridge, entries[kept])
        predicted[held] = kernel[held][:, kept] @ coefficients + mean
    return predicted
