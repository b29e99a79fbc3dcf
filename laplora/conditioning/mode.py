"""Conditioning a Gaussian process over the contrasts on labelled rows: its mode, and what follows for other rows.

The process is a prior of its own for what a predictive's log probabilities lack: its mean ``m(x)`` is their contrasts,
its kernel ``k(x, x')`` that of ``laplora.conditioning.last_layer``. It is not the Laplace posterior over the adapter,
which no label conditions. Labels ``y`` of rows X that training did not see condition it. With ``K = k(X, X)`` and the
cross-entropy as likelihood the mode is

    ``g = m(X) + K alpha``,   ``alpha_n = Q^T (onehot(y_n) - softmax(g_n))``,

the optimum of a concave problem of n (classes - 1) unknowns. With ``Lambda`` the Hessians of the rows' losses at the
mode and ``R R = Lambda``, other rows then have

    mean ``m(x) + k(x, X) alpha``,   covariance ``k(x, x) - k(x, X) R (I + R K R)^-1 R k(X, x)``

(Rasmussen and Williams 2006, *Gaussian Processes for Machine Learning*, section 3.4 and algorithm 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import one_hot

from laplora.errors import DataError, FactorizationError
from laplora.linearised import class_log_probs, class_probs, contrast_hessian, contrast_logits, hessian_root
from laplora.linearised import contrast_mean as to_contrasts
from laplora.metrics.checks import check_finite, checked_labels

#: Newton steps at most; ten were the most that was seen.
_STEPS = 100
#: Change of the objective at which the mode is found, nats a row.
_CONVERGED = 1e-10
#: Halvings of a Newton step before the search gives up.
_HALVINGS = 30


@dataclass(frozen=True)
class Mode:
    """The mode of the contrasts of labelled rows.

    Attributes:
        alpha: (rows, classes - 1) float64, what each row's label asks of its contrasts.
        contrasts: (rows, classes - 1) float64, at the mode, nats.
        root: (rows, classes - 1, classes - 1) float64, the symmetric root of each row's ``Lambda`` there.
        cholesky: (rows * (classes - 1),) squared float64, lower factor of ``I + R K R``.
    """

    alpha: torch.Tensor
    contrasts: torch.Tensor
    root: torch.Tensor
    cholesky: torch.Tensor

    def moved(self, cross: torch.Tensor) -> torch.Tensor:
        """Return what conditioning adds to the mean of other rows, (others, classes - 1) float64, nats.

        Args:
            cross: (others, classes - 1, rows, classes - 1), the kernel between them and the labelled rows.
        """
        result: torch.Tensor = torch.einsum("mcnd,nd->mc", cross, self.alpha)
        return result

    def covariance(self, own: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
        """Return the conditioned covariance of other rows, (others, classes - 1, classes - 1) float64, nats squared.

        Args:
            own: (others, classes - 1, classes - 1), before conditioning; cross: as of ``moved``.
        """
        seen = torch.einsum("nde,mcne->ndmc", self.root, cross)
        shape = seen.shape
        half = torch.linalg.solve_triangular(self.cholesky, seen.flatten(2).flatten(0, 1), upper=False)
        half = half.view(-1, shape[2], shape[3])
        covariance = own.double() - torch.einsum("kmc,kme->mce", half, half)
        return (covariance + covariance.mT) / 2


def posterior_mode(
    kernel: torch.Tensor,
    contrast_mean: torch.Tensor,
    labels: torch.Tensor,
    class_mask: torch.Tensor,
    start: torch.Tensor | None = None,
) -> Mode:
    """Return the mode of labelled rows, by Newton's method in function space with halved steps.

    Args:
        kernel: (rows, classes - 1, rows, classes - 1), symmetric and positive semi-definite, nats squared.
        contrast_mean: (rows, classes - 1), nats.
        labels: (rows,) int64; class_mask: (rows, classes) bool.
        start: alpha of a like problem, (rows, classes - 1); the result does not depend on it.

    Raises:
        DataError: no rows, shapes that do not fit, or a label that is not a possible class.
        NonFiniteError: NaN or infinity in the kernel or the mean.
        FactorizationError: no step that improves the objective, as of a kernel that is not positive semi-definite.
    """
    labels, mask = checked_labels(labels, class_mask), class_mask.cpu()
    rows, width = len(labels), class_mask.shape[1] - 1
    if contrast_mean.shape != (rows, width) or kernel.shape != (rows, width, rows, width):
        raise DataError(
            f"of {rows} rows of {width + 1} classes the mean must be {(rows, width)} and the kernel "
            f"{(rows, width, rows, width)}, got {tuple(contrast_mean.shape)} and {tuple(kernel.shape)}"
        )
    check_finite(kernel, "the kernel")
    check_finite(contrast_mean, "the rows' logits")
    matrix, mean = kernel.double().reshape(rows * width, -1), contrast_mean.double()
    target = one_hot(labels, width + 1).double()

    def state(alpha: torch.Tensor) -> tuple[float, torch.Tensor]:
        change = (matrix @ alpha.flatten()).view(rows, width)
        logits = contrast_logits(mean + change)
        likelihood = class_log_probs(logits, mask).gather(1, labels[:, None]).sum()
        return float((alpha * change).sum() / 2 - likelihood), mean + change

    alpha = torch.zeros(rows, width, dtype=torch.float64) if start is None else start.double()
    value, contrasts = state(alpha)
    for _ in range(_STEPS):
        logits = contrast_logits(contrasts)
        root, hessian = hessian_root(logits, mask), contrast_hessian(logits, mask)
        cholesky = _cholesky(matrix, root)
        pull = torch.einsum("nce,ne->nc", hessian, contrasts - mean) + to_contrasts(target - class_probs(logits, mask))
        inner = torch.cholesky_solve(_times(root, (matrix @ pull.flatten()).view(rows, width)).view(-1, 1), cholesky)
        proposed = pull - _times(root, inner.view(rows, width))
        step, before = proposed - alpha, value
        for halving in range(_HALVINGS):
            tried = alpha + step * 0.5**halving
            value, contrasts = state(tried)
            if value <= before + _CONVERGED * rows:
                break
        else:
            raise FactorizationError("the labels' mode was not found: is the kernel positive semi-definite?")
        alpha = tried
        if before - value <= _CONVERGED * rows:
            break
    logits = contrast_logits(contrasts)
    root = hessian_root(logits, mask)
    return Mode(alpha, contrasts, root, _cholesky(matrix, root))


def _times(root: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return each row's root times the row, (rows, classes - 1)."""
    result: torch.Tensor = torch.einsum("nce,ne->nc", root, rows)
    return result


def _cholesky(matrix: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """Return the lower factor of ``I + R K R``."""
    rows, width, _ = root.shape
    left = torch.einsum("nde,nek->ndk", root, matrix.view(rows, width, -1)).reshape(-1, rows, width)
    both = torch.einsum("knd,nde->kne", left, root).reshape(rows * width, rows * width)
    factor: torch.Tensor
    factor, failed = torch.linalg.cholesky_ex(torch.eye(len(both), dtype=torch.float64) + (both + both.T) / 2)
    if int(failed):
        raise FactorizationError("I + R K R is not positive definite: the kernel is not positive semi-definite")
    return factor
