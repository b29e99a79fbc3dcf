"""The covariance of all contrasts from the Jacobians of a few directions, for tasks of many classes.

``laplora.jacobians.many_classes`` chooses a row's directions S. Their covariance ``V_S = S^T V S`` is that of the
posterior, exact. The rest is what a Gaussian of the average covariance K of a few training rows says of it, given them:

    ``V = B V_S B^T + c (K - B S^T K)``,   ``B = K S (S^T K S)^-1``,   ``c = tr[(S^T K S)^-1 V_S] / m``

with m directions. So V is exact along them (``S^T V S = V_S``), positive semi-definite, and of the row's size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from laplora.errors import ArtifactCorruptError
from laplora.jacobians.blocks import Block, Choose, ContrastJacobians
from laplora.jacobians.many_classes import answer_directions
from laplora.linearised import contrast_hessian, contrast_logits, contrasts
from laplora.posterior.base import BlockDevices, Posterior, ProjectedJacobians

#: Averages that are kept; a search of the prior takes hundreds.
_AVERAGES = 4
#: A prior precision beside which no training set's curvature counts.
_PRIOR_ALONE = 1e12


@dataclass(frozen=True)
class ManyClassPosterior:
    """A posterior whose covariances come from Jacobians of few directions; ``laplora.posterior.base.Posterior``.

    Attributes:
        inner: the posterior over the weights.
        reference: some training rows as ``inner`` sees Jacobians of all their contrasts. Their average covariance is K:
            under the prior alone where it chooses directions, under the precisions in question where it fills in.
        directions: how many, of an answer.
    """

    inner: Posterior
    reference: ProjectedJacobians
    directions: int

    @property
    def blocks(self) -> tuple[Block, ...]:
        return self.inner.blocks

    @property
    def rows(self) -> int:
        return self.inner.rows

    @property
    def structure(self) -> str:
        return self.inner.structure

    @cached_property
    def choose(self) -> Choose:
        """The choice of directions, for ``contrast_jacobians``."""
        average = self._average(None)
        return answer_directions(average, min(self.directions, len(average)))

    def to(
        self, device: torch.device | str, dtype: torch.dtype, by_block: BlockDevices | None = None
    ) -> ManyClassPosterior:
        inner, reference = self.inner.to(device, dtype, by_block), self.reference
        moved = (t.to(device) for t in (reference.contrast_mean, reference.kept, reference.rest))
        return replace(self, inner=inner, reference=ProjectedJacobians(*moved))

    def project(self, jacobians: ContrastJacobians) -> ProjectedJacobians:
        """Return what the covariance needs of Jacobians in the directions of ``choose``, and those directions."""
        assert jacobians.directions is not None
        transform = contrasts(jacobians.logits.shape[1]).to(jacobians.logits.device)
        in_contrasts = (jacobians.directions.double() @ transform).permute(1, 2, 0)
        return replace(self.inner.project(jacobians), directions=in_contrasts)

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        assert projected.directions is not None
        along = self.inner.covariance(projected, precisions)
        return completed_covariance(along, projected.directions, self._average(precisions))

    def filled_in_share(
        self, projected: ProjectedJacobians, logits: torch.Tensor, class_mask: torch.Tensor, precisions: torch.Tensor
    ) -> torch.Tensor:
        """Return (batch,) float64 in [0, 1]: how much of each row's variance is filled in and not computed.

        It is the second term's share of ``tr(Lambda V)``, to first order the spread of the log probabilities.

        Args:
            projected: of ``project``; logits: (batch, classes), nats; precisions: (blocks,).
        """
        assert projected.directions is not None
        along = self.inner.covariance(projected, precisions)
        hessian = contrast_hessian(logits, class_mask)
        computed, filled = (
            torch.einsum("nij,nji->n", hessian, part).clamp_min(0)
            for part in covariance_parts(along, projected.directions, self._average(precisions))
        )
        return filled / (computed + filled).clamp_min(torch.finfo(torch.float64).tiny)

    def reference_errors(self, precisions: torch.Tensor) -> torch.Tensor:
        """Return (rows,) float64 the error of each reference row's variance, were it answered and not among them.

        The relative error of ``tr(Lambda V)``, K being the average of the others: what filling in does to rows whose
        every contrast is known. With R of them, a further row like them has a larger error than the largest with a
        probability of about 1 / (R + 1). Empty for fewer than two rows.
        """
        count = len(self.reference.contrast_mean)
        if count < 2:
            return torch.zeros(0, dtype=torch.float64)
        logits = contrast_logits(self.reference.contrast_mean.double())
        mask = torch.ones(logits.shape, dtype=torch.bool, device=logits.device)
        transform, hessian = contrasts(logits.shape[1]).to(logits.device), contrast_hessian(logits, mask)
        whole = self.inner.covariance(self.reference, precisions)
        choosing, filling = (shapes(self.inner, self.reference, p) for p in (None, precisions))
        completed = []
        for row in range(count):
            without, this_row = (torch.arange(count, device=logits.device) != row), slice(row, row + 1)
            choose = answer_directions(choosing[without].mean(0), self.directions)
            directions = (choose(logits[this_row], mask[this_row]).vectors @ transform).permute(1, 2, 0)
            along = directions.mT @ whole[this_row] @ directions
            completed.append(completed_covariance(along, directions, filling[without].mean(0))[0])
        approximate, truth = (torch.einsum("nij,nji->n", hessian, v) for v in (torch.stack(completed), whole))
        return (approximate / truth.clamp_min(torch.finfo(torch.float64).tiny) - 1).abs().cpu()

    def _average(self, precisions: torch.Tensor | None) -> torch.Tensor:
        """Return K, kept for the next call under the same precisions."""
        key = () if precisions is None else tuple(precisions.tolist())
        if key not in self._averages:
            if len(self._averages) >= _AVERAGES:
                self._averages.clear()
            self._averages[key] = average_covariance(self.inner, self.reference, precisions)
        return self._averages[key]

    @cached_property
    def _averages(self) -> dict[tuple[float, ...], torch.Tensor]:
        return {}

    def covariance_of(self, jacobians: ContrastJacobians, precisions: torch.Tensor) -> torch.Tensor:
        return self.covariance(self.project(jacobians), precisions)

    def log_determinant_ratio(self, precisions: torch.Tensor) -> torch.Tensor:
        return self.inner.log_determinant_ratio(precisions)

    def effective_dimension(self, precisions: torch.Tensor) -> torch.Tensor:
        return self.inner.effective_dimension(precisions)


def choose_of(posterior: Posterior) -> Choose | None:
    """Return which directions a posterior needs Jacobians of, for ``contrast_jacobians``; None: all contrasts."""
    return posterior.choose if isinstance(posterior, ManyClassPosterior) else None


def check_class_count(posterior: Posterior, classes: int) -> None:
    """Raise ArtifactCorruptError where the reference rows of a stored posterior are those of other classes."""
    if isinstance(posterior, ManyClassPosterior) and posterior.reference.contrast_mean.shape[1] != classes - 1:
        raise ArtifactCorruptError(
            f"the posterior's reference rows have {posterior.reference.contrast_mean.shape[1] + 1} classes, there are "
            f"{classes}"
        )


def completed_covariance(along: torch.Tensor, directions: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Return the covariance of all contrasts, (batch, classes - 1, classes - 1) float64, positive semi-definite.

    Args:
        along: (batch, m, m) ``V_S``, positive semi-definite; nats squared.
        directions: (batch, classes - 1, m), S; a column of zeros is none.
        average: (classes - 1, classes - 1), K.
    """
    regression, scale, projected_average = _terms(along, directions, average)
    # Both terms at once: K is of full size once a row, and what the Jacobians change of it is of rank m.
    change = along.double() - scale[:, None, None] * projected_average
    return torch.baddbmm(scale[:, None, None] * average.to(regression), regression @ change, regression.mT)


def covariance_parts(
    along: torch.Tensor, directions: torch.Tensor, average: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two terms of ``completed_covariance``: what follows from the Jacobians, and what is filled in."""
    regression, scale, projected_average = _terms(along, directions, average)
    from_jacobians = regression @ along.double() @ regression.mT
    filled_in = scale[:, None, None] * (average.to(regression) - regression @ projected_average @ regression.mT)
    return (from_jacobians + from_jacobians.mT) / 2, (filled_in + filled_in.mT) / 2


def _terms(
    along: torch.Tensor, directions: torch.Tensor, average: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the regression on the directions ``K S (S^T K S)^-1``, each row's scale of K, and ``S^T K S``; float64."""
    directions = directions.double()
    seen = average.to(directions) @ directions
    projected_average = directions.mT @ seen
    inverse = torch.linalg.pinv(projected_average, hermitian=True)
    count = (directions.abs().amax(1) > 0).sum(1).clamp_min(1)
    return seen @ inverse, torch.einsum("nij,nji->n", inverse, along.double()) / count, projected_average


def average_covariance(
    posterior: Posterior, projected: ProjectedJacobians, precisions: torch.Tensor | None = None
) -> torch.Tensor:
    """Return K, (classes - 1, classes - 1) float64: the mean of rows' ``shapes``, which the arguments are those of."""
    return shapes(posterior, projected, precisions).mean(0)


def shapes(posterior: Posterior, projected: ProjectedJacobians, precisions: torch.Tensor | None) -> torch.Tensor:
    """Return rows' covariances divided by their traces, (rows, classes - 1, classes - 1) float64.

    Args:
        projected: as ``posterior.project`` gives them, of Jacobians of all contrasts.
        precisions: (blocks,) float64; None: so high that the prior alone counts.
    """
    if precisions is None:
        precisions = torch.full((len(posterior.blocks),), _PRIOR_ALONE).to(projected.rest.device, torch.float64)
    covariance = posterior.covariance(projected, precisions)
    traces = covariance.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(torch.float64).tiny)
    return covariance / traces[:, None, None]
