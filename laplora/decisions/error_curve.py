"""How often answers of an entropy are wrong: a curve from few calibration rows, drawn towards the entropy's own word.

An answer of two labels has an entropy h(e) where its less probable label has e. Read backwards, an entropy says how
often the most probable label is wrong. Rows correct that by a shift and a slope of its log-odds (Platt scaling), with
a normal prior: shift 0, slope 1.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn.functional import logsigmoid, softplus

_SHIFT_SD, _SLOPE_SD = 0.5, 0.35
#: Log-odds of an error that entropies stand for, and how far apart two of them are.
_LOWEST, _HIGHEST, _APART = -14.0, 7.0, 0.1


def error_curve(entropies: torch.Tensor, wrong: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return (groups,) float64 the probability of a mistake at each entropy, its mean over the posterior.

    With more than two labels the entropy's own word is at least the probability that the other labels have together: up
    to log 2 nats as their parts add to the entropy, and above as an answer of p has an entropy of at least -log p.

    Args:
        entropies: (groups,) float64, nats; wrong: (groups,) mistakes among the rows of each; counts: (groups,) rows.
    """
    value, at, shift, slope, log_prior, log_right, probs = _grid()
    place = torch.searchsorted(at, entropies).clamp_max(len(at) - 1)
    rows, mistakes = (torch.zeros_like(at).index_add(0, place, column.double()) for column in (counts, wrong))
    # A mistake's log probability is that of a right answer and its log-odds more.
    of_mistakes = shift * mistakes.sum() + slope * (value @ mistakes)
    posterior = torch.softmax(log_prior + log_right @ rows + of_mistakes, 0)
    return (posterior @ probs)[place]


@cache
def _grid() -> tuple[torch.Tensor, ...]:
    """Return what rows do not change, over pairs of shift and slope and over log-odds that an entropy stands for.

    That is: (values,) log-odds, and the largest entropy of each; (pairs,) shift, slope and log prior; (pairs, values)
    log probability of a right answer, and probability of a wrong one.
    """
    value = torch.arange(_LOWEST, _HIGHEST, _APART, dtype=torch.float64)
    upper = value + _APART / 2
    error = upper.sigmoid()
    two_labels = -(error * logsigmoid(upper) + (1 - error) * logsigmoid(-upper))
    shifts, slopes = (torch.arange(low, 2.01, step, dtype=torch.float64) for low, step in ((-2, 0.2), (0, 0.1)))
    shift, slope = torch.cartesian_prod(shifts, slopes).T
    log_odds = shift[:, None] + slope[:, None] * value
    log_prior = -((shift / _SHIFT_SD).square() + ((slope - 1) / _SLOPE_SD).square()) / 2
    at = torch.where(upper < 0, two_labels, softplus(upper))
    return value, at, shift, slope, log_prior, logsigmoid(-log_odds), log_odds.sigmoid()
