"""An out-of-distribution score: how far an input's states are from the training rows, less how decided its logits are.

Distances notice inputs of another kind. If a head only reads the text, an input of the same kind with an unknown label
lies nearer to the training rows. Its logits then tell more: they are spread less. So with ``d`` the distance after a
layer, ``p`` the labels' probabilities and ``u`` uniform ones, the score is

    ``mean over layers of log d^2(x)  -  w KL(u || p)``,    ``KL(u || p) = log sum_c exp f_c - log C``

for logits ``f`` whose mean is taken out, nats. It is the energy score (Liu et al., arXiv 2010.03759) of such logits:
those of label words have a mean that depends on the text and says nothing. GradNorm is built on the same divergence
(Huang, Geng and Li, arXiv 2110.00218). By ``w`` the divergence varies half as much as the distance over the training
rows. So the scale of the logits does not matter, and no other row has a part in it. If both varied alike, an input of
another kind that is answered surely would pass for familiar (docs/lab-notes.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from laplora.familiarity.mahalanobis import LayerDistance, fit_layer
from laplora.jacobians.states import States
from laplora.linearised import contrast_logits
from laplora.metrics.checks import check_finite

#: A share of the weight by which both terms vary alike over the training rows.
_SHARE = 0.5
#: Logits that vary less over the training rows, in nats, are constant but for rounding.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class OodScore:
    """A fitted out-of-distribution score.

    Attributes:
        layers: whose states are compared, from 0; distances: one each.
        weight: of the divergence, per nat, ``w``; 0 or above.
    """

    layers: tuple[int, ...]
    distances: tuple[LayerDistance, ...]
    weight: float = 0.0

    def of(self, states: States) -> torch.Tensor:
        """Return (batch,) float64 the scores of inputs by their states, after ``layers`` at least; no unit."""
        far = mean_log_distance(self.distances, states.after(self.layers).hidden)
        return far - self.weight * divergence(states) if self.weight else far


def fit_ood_score(states: States, labels: torch.Tensor, *, by_logits: bool = True) -> OodScore:
    """Return the out-of-distribution score of training rows, by their states after some layers.

    Args:
        by_logits: whether the logits have a part.
        labels: (rows,) int64; or (rows, classes) where a row may have several. Then there is one centre for all rows,
            and the logits have no part.

    Raises:
        NonFiniteError: NaN or infinity in a state or a logit.
    """
    check_finite(states.hidden, "a training row's hidden state")
    check_finite(states.contrast_mean, "a training row's logits")
    classes = labels if labels.dim() == 1 else torch.zeros(len(labels), dtype=torch.int64)
    distances = tuple(fit_layer(states.hidden[:, place], classes) for place in range(len(states.layers)))
    weight = 0.0
    if labels.dim() == 1 and by_logits:
        spread = float(divergence(states).std())
        far = float(mean_log_distance(distances, states.hidden).std())
        weight = _SHARE * far / spread if spread > _CONSTANT and math.isfinite(far) else 0.0
    return OodScore(states.layers, distances, weight)


def mean_log_distance(distances: tuple[LayerDistance, ...], hidden: torch.Tensor) -> torch.Tensor:
    """Return (batch,) float64 the mean logarithm of the squared distances of states (batch, layers, hidden)."""
    squared = torch.stack([distance.squared(hidden[:, place]) for place, distance in enumerate(distances)])
    return squared.clamp_min(torch.finfo(torch.float64).tiny).log().mean(0)


def divergence(states: States) -> torch.Tensor:
    """Return (batch,) float64 ``KL(u || p)``, nats, of inputs' logits: 0 where all are the same."""
    logits = contrast_logits(states.contrast_mean.double())
    return logits.logsumexp(1) - math.log(logits.shape[1])
