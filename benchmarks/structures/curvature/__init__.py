"""Every structure by name: the product's, and those that only serve comparison.

``whole``: the exact GGN and its leading directions over all parameters. ``diagonal``: the diagonal Fisher. ``kfac``:
Kronecker factors of single tokens.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from benchmarks.structures.curvature.diagonal import fit_diagonal
from benchmarks.structures.curvature.kfac import fit_kfac_expand, fit_kfac_last
from benchmarks.structures.curvature.whole import fit_exact, fit_joint
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.base import Covariances, ProjectedJacobians
from laplora.posterior.passes import Pass, StructureSettings
from laplora.posterior.structures import FITTERS


class Compared(Covariances, Protocol):
    """What a comparison asks of a posterior."""

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Any:
        """As ``laplora.posterior.base.Posterior.to``."""

    def project(self, jacobians: ContrastJacobians) -> ProjectedJacobians:
        """As ``laplora.posterior.base.Posterior.project``."""

    def covariance_of(self, jacobians: ContrastJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """As ``laplora.posterior.base.Posterior.covariance_of``."""


def fit_posterior(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> Compared:
    """Return the posterior of any structure, as ``laplora.posterior.structures.fit_posterior``."""
    fitters: dict[str, Any] = {
        **FITTERS,
        "exact": fit_exact,
        "joint": fit_joint,
        "diagonal": fit_diagonal,
        "kfac_expand": fit_kfac_expand,
        "kfac_last": fit_kfac_last,
    }
    found: Compared = fitters[settings.structure](settings, blocks, run_pass)
    return found


def needs_tokens(structure: str) -> bool:
    """Return whether a structure's passes need every token's input and gradient."""
    return structure in ("kfac_expand", "kfac_last")
