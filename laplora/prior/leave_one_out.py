"""Choosing the prior precision without held-out rows: every training row predicted without itself.

Under the linearised model each training row is one Gaussian factor of the posterior over the weights. Dividing it out
(the "cavity") needs no refit: with ``V_n`` the covariance of row n's contrasts under the ``exact`` posterior of all
rows, ``f_n`` its contrasts, ``Lambda_n`` the Hessian of its loss and ``g_n = Q^T (p_n - y_n)`` the gradient,

    ``V_-n = (V_n^-1 - Lambda_n)^-1 = V_n (I - Lambda_n V_n)^-1``,   ``f_-n = f_n + V_-n g_n``

(Vehtari et al., arXiv 1412.7461, on Laplace approximations). The mean moves as under one fixed prior, and only the
covariance follows the prior that is tried. If the mean followed it as well, an overfitted adapter would choose MAP.
"""

from __future__ import annotations

import math
import warnings

import torch

from laplora.errors import PriorError
from laplora.linearised import class_probs, contrast_logits, hessian_root
from laplora.linearised import contrast_mean as to_contrasts
from laplora.posterior.base import Granularity, Posterior, Prior, ProjectedJacobians, block_precisions
from laplora.posterior.many_classes import ManyClassPosterior
from laplora.prior.search import PriorChoice, predictive_nll, search_precisions

#: Where a row's share of its precision comes this close to 1, what is left is rounding of float32 Jacobians.
_ROUNDING = 1e-7


def cavities(
    contrast_mean: torch.Tensor, covariance: torch.Tensor, labels: torch.Tensor, class_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return each training row's contrasts under the posterior without the row.

    Args:
        contrast_mean: (rows, classes - 1), nats; covariance: (rows, classes - 1, classes - 1) under the posterior
            of all rows.
        labels: (rows,) int64; class_mask: (rows, classes) bool.

    Returns:
        mean (rows, classes - 1) and covariance (rows, classes - 1, classes - 1), float64, and proper (rows,) bool:
        false where ``V_n^-1 - Lambda_n`` is not positive definite beyond rounding; mean and covariance are
        meaningless there.
    """
    mean, covariance = contrast_mean.double(), covariance.double()
    logits = contrast_logits(mean)
    target = torch.nn.functional.one_hot(labels, class_mask.shape[1])
    gradient = to_contrasts(class_probs(logits, class_mask) - target)
    without, proper = divided_out(covariance, hessian_root(logits, class_mask))
    return mean + (without @ gradient[:, :, None])[:, :, 0], without, proper


def divided_out(covariance: torch.Tensor, root: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the covariance of each row without its own factor, ``(V^-1 - Lambda)^-1``, float64, and where it is one.

    Args:
        covariance: (rows, directions, directions) with the factor, float64; may be singular.
        root: (rows, directions, directions) float64, symmetric, with ``root @ root = Lambda``.

    Returns:
        (rows, directions, directions), and proper (rows,) bool: false where ``V^-1 - Lambda`` is not positive definite
        beyond rounding; the covariance is meaningless there.
    """
    # V (I - Lambda V)^-1 = V + V R (I - R V R)^-1 R V with R R = Lambda: symmetric, and V may be singular.
    share, vectors = torch.linalg.eigh(root @ covariance @ root)
    proper = 1 - share[:, -1] > _ROUNDING
    half = covariance @ root @ vectors
    left = half / (1 - share).clamp_min(_ROUNDING)[:, None, :] @ half.mT
    return covariance + (left + left.mT) / 2, proper


def choose_by_leave_one_out(
    posterior: Posterior,
    projected: ProjectedJacobians,
    labels: torch.Tensor,
    class_mask: torch.Tensor,
    granularity: Granularity = "scalar",
    *,
    trained_under: Prior,
) -> PriorChoice:
    """Return the precisions of least leave-one-out NLL on the training rows.

    A precision at which some row has no proper cavity is infeasible, whatever the other rows say; where the choice lies
    next to such precisions a warning names them and the choice counts as at a bound.

    Args:
        posterior: of structure ``exact``.
        projected: the projected Jacobians of the rows that it was fitted to.
        labels: (rows,) int64; class_mask: (rows, classes) bool.
        trained_under: prior under which a row's pull at the weights is taken back, for example the evidence's choice.

    Raises:
        PriorError: another structure, other rows, ``module`` granularity, or an infeasible ``trained_under``.
    """
    if posterior.structure != "exact":
        raise PriorError(
            f"leave-one-out takes the exact posterior, from which a row can be divided out; this one is of structure "
            f"{posterior.structure!r}: fit structure exact for the choice, or choose by validation or evidence"
        )
    if isinstance(posterior, ManyClassPosterior):
        raise PriorError(
            "leave-one-out takes the curvature of every contrast; with many classes only few directions are computed: "
            "choose by validation or evidence"
        )
    if len(labels) != posterior.rows:
        raise PriorError(
            f"leave-one-out takes the {posterior.rows} rows that the posterior was fitted to, got {len(labels)}"
        )
    infeasible: list[Prior] = []

    def moments(prior: Prior) -> tuple[torch.Tensor, torch.Tensor] | None:
        covariance = posterior.covariance(projected, block_precisions(prior, posterior.blocks))
        mean, without, proper = cavities(projected.contrast_mean, covariance, labels, class_mask)
        return (mean, without) if bool(proper.all()) else None

    retrained = moments(trained_under)
    if retrained is None:
        raise PriorError(
            f"under the prior {trained_under.precision} some row cannot be divided out of the posterior: take a "
            "larger precision for trained_under"
        )
    mean = retrained[0]

    def nll(prior: Prior) -> float:
        cavity = moments(prior)
        if cavity is None:
            infeasible.append(prior)
            return math.inf
        return predictive_nll(mean, cavity[1], labels, class_mask)

    prior, value, at_bound = search_precisions(nll, posterior.blocks, granularity)
    if not math.isfinite(value):
        raise PriorError(
            "at no precision can every row be divided out of the posterior: are these the rows, in the model's "
            "present state, that it was fitted to?"
        )
    near = [p for p in infeasible if _neighbours(p, prior)]
    if near:
        warnings.warn(
            f"leave-one-out: the choice {prior.precision} lies beside {len(near)} infeasible precisions, such as "
            f"{near[0].precision}, where some row cannot be divided out of the posterior",
            RuntimeWarning,
            stacklevel=2,
        )
        at_bound = tuple(prior.precision)
    return PriorChoice(prior, "leave_one_out", -value, at_bound)


def _neighbours(first: Prior, second: Prior) -> bool:
    """Return whether all precisions are within a factor of 2 of each other; the grid's step is 1.8."""
    return all(abs(math.log(first.precision[k] / second.precision[k])) < math.log(2) for k in second.precision)
