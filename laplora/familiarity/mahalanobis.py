"""The squared Mahalanobis distance of a state to the nearest class centre of the training rows, after one layer.

All classes share one covariance (Lee et al., arXiv 1807.03888). A few hundred rows in many hundred dimensions fix it in
few directions. So it is kept in ``k`` leading principal directions of the rows, and isotropic beside them (as in
probabilistic principal component analysis: Tipping and Bishop 1999). With ``p = U^T (x - m)``, ``s`` the variances
within the classes, and ``t`` the mean variance along the other directions,

    ``d^2(x) = min_c sum_j (p_j - c_j)^2 / s_j + (|x - m|^2 - |p|^2) / t``

``s`` and ``t`` are shrunk towards the mean variance of all directions, by the fixed share ``SHRINKAGE``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Principal directions that are kept beside one for each class but the first, and how many in all at most.
DIRECTIONS, MOST_DIRECTIONS = 64, 256
#: Times as many rows and dimensions as directions beyond which these are found by iteration; how many, and how many
#: directions beside the wanted ones. The variance along them is within .1 % of the most on states, 2 % on noise.
_FEW, _ITERATIONS, _BESIDE = 4, 4, 16
#: Share of the mean variance in every variance.
SHRINKAGE = 0.1
#: Number format in which the directions are kept; distances are fitted in the rounded ones.
KEPT = torch.float16
#: Differences first: the way by matrix products loses the last digits, and with them that rows do not interact.
_EXACT = "donot_use_mm_for_euclid_dist"


@dataclass(frozen=True)
class LayerDistance:
    """A fitted distance after one layer.

    Attributes:
        center: (hidden,), mean of the rows' states, ``m``.
        directions: (hidden, k), orthonormal but for rounding, ``U``; in them the variance within the classes is
            diagonal.
        class_centers: (centres, k), less ``m``, in these directions.
        variances: (k,), within the classes, above 0, ``s``; rest: (), ``t``.
    """

    center: torch.Tensor
    directions: torch.Tensor
    class_centers: torch.Tensor
    variances: torch.Tensor
    rest: torch.Tensor

    def squared(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (batch,) float64, the squared distances of states (batch, hidden); no unit."""
        shifted = hidden.double() - self.center.double()
        along = shifted @ self.directions.double()
        outside = (shifted.square().sum(1) - along.square().sum(1)).clamp_min(0) / self.rest.double()
        scale = self.variances.double().rsqrt()
        within = torch.cdist(along * scale, self.class_centers.double() * scale, compute_mode=_EXACT).square()
        return within.amin(1) + outside


def fit_layer(hidden: torch.Tensor, classes: torch.Tensor) -> LayerDistance:
    """Return the distance to the centres of some rows' classes; float32, the directions in ``KEPT``.

    Args:
        hidden: (rows, hidden), at least two rows; classes: (rows,) int64, in whose order the centres come. A class
            without a row has no centre.
    """
    states = hidden.double()
    rows, size = states.shape
    center = states.mean(0).float()
    states = states - center.double()
    names, owner = torch.unique(classes, return_inverse=True)
    wanted = min(DIRECTIONS + len(names) - 1, MOST_DIRECTIONS)
    directions = _principal(states, min(wanted, rows - 1, size))
    along = states @ directions
    centers = along.new_zeros(len(names), along.shape[1]).index_add_(0, owner, along)
    centers = centers / torch.bincount(owner)[:, None]
    within = along - centers[owner]
    covariance = within.T @ within / max(rows - len(names), 1)
    outside = float((states.square().sum() - along.square().sum()).clamp_min(0)) / rows
    mean = max((float(covariance.trace()) + outside) / size, torch.finfo(torch.float32).tiny)
    turned = torch.linalg.eigh(covariance).eigenvectors
    kept = (directions @ turned).to(KEPT)
    # Everything that is compared is seen through the rounded directions.
    along = states @ kept.double()
    centers = along.new_zeros(centers.shape).index_add_(0, owner, along) / torch.bincount(owner)[:, None]
    spread = (along - centers[owner]).square().sum(0) / max(rows - len(names), 1)
    beside = max(size - along.shape[1], 1)
    return LayerDistance(
        center=center,
        directions=kept,
        class_centers=centers.float(),
        variances=((1 - SHRINKAGE) * spread + SHRINKAGE * mean).float(),
        rest=torch.tensor((1 - SHRINKAGE) * outside / beside + SHRINKAGE * mean),
    )


def _principal(states: torch.Tensor, count: int) -> torch.Tensor:
    """Return the leading directions of centred states, (hidden, count), float64 and orthonormal.

    In high dimensions, they are found by subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm
    4.4), begun at some of the states.
    """
    rows, size = states.shape
    if min(rows, size) > _FEW * count:
        narrow, wanted = states.float(), count + _BESIDE
        basis = narrow[:: max(1, rows // wanted)][:wanted].T
        for _ in range(_ITERATIONS):
            basis = narrow.T @ (narrow @ torch.linalg.qr(basis).Q)
        basis = torch.linalg.qr(basis).Q
        turned = torch.linalg.eigh((narrow @ basis).T @ (narrow @ basis)).eigenvectors
        directions = (basis @ turned[:, -count:]).double()
    elif rows < size:
        values, vectors = torch.linalg.eigh(states @ states.T)
        directions = states.T @ vectors[:, -count:]
        floor = 1e-10 * float(values[-1].clamp_min(1e-300))
        directions = directions[:, values[-count:] > floor]
    else:
        directions = torch.linalg.eigh(states.T @ states).eigenvectors[:, -count:]
    orthonormal: torch.Tensor = torch.linalg.qr(directions).Q
    return orthonormal
