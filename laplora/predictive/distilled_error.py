"""How far off a predicted covariance may be, row by row.

Kernel ridge regression is the mean of a Gaussian process whose noise is the ridge (Rasmussen and Williams, Gaussian
Processes for Machine Learning, 2006, equations 2.25 and 2.26). With ``k`` a row's kernel against the support and ``K``
that of the support with itself, the row's variance is

    ``v = 1 - k^T (K + ridge I)^-1 k``

and one standard deviation of the error of the covariance's logarithm is ``scale sqrt(v + ridge)``. The scale is learnt
from rows left out of the fit (equation 5.12). It is an extrapolation for rows that are unlike all of them, which
``laplora.familiarity`` tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.linearised import contrasts


@dataclass(frozen=True)
class KernelError:
    """The error of a kernel machine.

    Attributes:
        ridge: () float64, of the fit.
        scale: () float64, standard deviation of the error of ``log V`` for each unit of ``sqrt(v + ridge)``.
        factor: (inputs, inputs) float64, lower Cholesky factor of ``K + ridge I``.
    """

    ridge: torch.Tensor
    scale: torch.Tensor
    factor: torch.Tensor

    def variance(self, kernel: torch.Tensor) -> torch.Tensor:
        """Return (batch,) float64 the ``v`` of rows whose kernel against the support is (batch, inputs)."""
        known: torch.Tensor = torch.linalg.solve_triangular(self.factor, kernel.T, upper=False).square().sum(0)
        return (1 - known).clamp(0, 1)

    def log_error(self, variance: torch.Tensor) -> torch.Tensor:
        """Return (batch,) float64 one standard deviation of the error of ``log V``."""
        return self.scale * (variance + self.ridge).sqrt()


def regularised_factor(kernel: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the lower Cholesky factor of ``K + ridge I``, (inputs, inputs) float64."""
    regular = kernel.double() + ridge * torch.eye(len(kernel), dtype=torch.float64)
    factor: torch.Tensor = torch.linalg.cholesky(regular)
    return factor


def left_out(factor: torch.Tensor, coefficients: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``y - prediction`` (rows, entries) and ``v + ridge`` (rows,) of a fit's first rows, each left out of it.

    Args:
        factor: of the fit; coefficients: (inputs, entries), ``(K + ridge I)^-1`` times what is fitted less its mean,
            which stays as it is.
    """
    identity = torch.eye(len(factor), dtype=torch.float64)[:, :rows]
    variances = 1 / torch.linalg.solve_triangular(factor, identity, upper=False).square().sum(0)
    return coefficients[:rows].double() * variances[:, None], variances


def fit_kernel_error(
    factor: torch.Tensor, ridge: float, log_errors: torch.Tensor, variances: torch.Tensor
) -> KernelError:
    """Return the error that gives left-out rows' errors unit scale.

    Args:
        factor: of ``K + ridge I``; log_errors: (rows,), of rows left out; variances: (rows,), their ``v + ridge``.
    """
    return KernelError(
        ridge=torch.tensor(ridge, dtype=torch.float64),
        scale=(log_errors.double().square() / variances).mean().sqrt(),
        factor=factor,
    )


def log_traces(covariances: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return (rows,) float64 the logarithm of the summed variances of the possible classes' logits, less their mean.

    Args:
        covariances: (rows, classes - 1, classes - 1), of the contrasts; class_mask: (rows, classes) bool.
    """
    possible = class_mask.cpu().double()[..., None]
    transform = contrasts(class_mask.shape[1], torch.float64)
    centred = (transform - (possible * transform).sum(1, keepdim=True) / possible.sum(1, keepdim=True)) * possible
    traces = torch.einsum("nci,nij,ncj->n", centred, covariances.double().cpu(), centred)
    return traces.clamp_min(torch.finfo(torch.float64).tiny).log()


def log_error(predicted: torch.Tensor, exact: torch.Tensor, class_mask: torch.Tensor) -> float:
    """Return the root mean square of ``log(trace predicted / trace exact)`` over rows; arguments as ``log_traces``."""
    return float((log_traces(predicted, class_mask) - log_traces(exact, class_mask)).square().mean().sqrt())
