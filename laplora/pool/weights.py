"""Weights of a logarithmic opinion pool, ``p(y | x) ~ prod_e p_e(y | x)^w_e`` (Genest and Zidek 1986).

They are at least 0 and need not sum to 1: with one expert, the pool is temperature scaling. They make labels likeliest
that no expert knew (stacking, Wolpert 1992), with a ridge towards equal ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from laplora.errors import DataError
from laplora.linearised import Likelihood, targets_of

#: Precision of the Gaussian prior of each weight, about one share of the experts. With 150 rows and less of it, an
#: adapter is weighed by luck; with more, one that knows nothing keeps a say.
RIDGE = 20.0
#: An expert of less weight is left out, unless all are: its pass costs more than its say.
LEAST = 0.02
#: Least weight of one that stays: where every expert misleads, the heaviest is left, and answers are nearly uniform.
_FAINT = 1e-3


def fit_weights(
    log_probs: Mapping[str, torch.Tensor], labels: torch.Tensor, likelihood: Likelihood = "categorical"
) -> dict[str, float]:
    """Return the weight of each expert, above 0; one of next to none is left out, and the others are fitted anew.

    Args:
        log_probs: by expert (rows, classes) honest log probabilities, nats, -inf at impossible classes; under
            ``bernoulli`` logits.
        labels: (rows,) int64, or soft (``linearised.cross_entropy``); under ``bernoulli`` (rows, labels) of 0 or 1.

    Raises:
        DataError: no rows, or NaN: a row in which an expert is not honest; a label that an expert calls impossible.
    """
    names = list(log_probs)
    stacked = torch.stack([log_probs[name] for name in names]).double()
    if not stacked.shape[1] or bool(stacked.isnan().any()):
        raise DataError("weights of a pool need rows in which every expert is honest, at least one, and no others")
    one = likelihood == "categorical"
    targets = targets_of(labels, stacked.shape[2]) if one else labels.double()
    if one and bool((stacked.isinf() & (targets > 0)).any()):
        raise DataError(
            "an expert gives a row's label no chance at all, which no weight mends: check its probabilities"
        )
    weights = _fitted(stacked, targets, likelihood)
    kept = [place for place, weight in enumerate(weights) if weight >= LEAST] or [weights.index(max(weights))]
    if len(kept) < len(names):
        weights, names = _fitted(stacked[kept], targets, likelihood), [names[place] for place in kept]
    return dict(zip(names, weights, strict=True))


def pooled(
    log_probs: Mapping[str, torch.Tensor], weights: Mapping[str, float], likelihood: Likelihood = "categorical"
) -> torch.Tensor:
    """Return (rows, classes) float64 the pool's log probabilities, -inf at impossible classes; or labels' logits.

    Args:
        log_probs: as of ``fit_weights``, at least the experts that have a weight.
    """
    total = sum(weight * log_probs[name].double() for name, weight in weights.items())
    assert isinstance(total, torch.Tensor)
    return total.log_softmax(-1) if likelihood == "categorical" else total


def _fitted(stacked: torch.Tensor, targets: torch.Tensor, likelihood: Likelihood) -> list[float]:
    """Return the weights of (experts, rows, classes), by L-BFGS within bounds: the problem is convex.

    Args:
        targets: (rows, classes) the labels' probabilities; under ``bernoulli`` 0 or 1.
    """
    from scipy.optimize import minimize

    experts = len(stacked)
    share, values = 1 / experts, stacked.masked_fill(stacked == -torch.inf, 0)
    one = likelihood == "categorical"
    impossible = (stacked == -torch.inf).any(0)

    def objective(weights: Any) -> tuple[float, Any]:
        w = torch.as_tensor(weights)
        logits = torch.einsum("e,erc->rc", w, values).masked_fill(impossible, -torch.inf)
        if one:
            losses = -(targets * logits.log_softmax(-1).masked_fill(impossible, 0)).sum()
            missed = logits.softmax(-1) - targets
        else:
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
            missed = logits.sigmoid() - targets
        slope = torch.einsum("erc,rc->e", values, missed) + RIDGE * (w - share)
        return float(losses + RIDGE / 2 * (w - share).square().sum()), slope.numpy()

    bounds = [(_FAINT, None)] * experts
    optimum = minimize(objective, [share] * experts, jac=True, method="L-BFGS-B", bounds=bounds, tol=1e-12)
    weights: list[float] = optimum.x.tolist()
    return weights
