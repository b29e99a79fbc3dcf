"""The structures of the posterior by name: how each is fitted, and what it takes."""

from __future__ import annotations

from collections.abc import Callable

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block
from laplora.posterior.base import Posterior
from laplora.posterior.joint_core import fit_joint_core
from laplora.posterior.kronecker import fit_ekfac, fit_kfac_reduce
from laplora.posterior.passes import Pass, StructureSettings

Fitter = Callable[[StructureSettings, tuple[Block, ...], Pass], Posterior]

#: How each structure is fitted.
FITTERS: dict[str, Fitter] = {"joint_core": fit_joint_core, "ekfac": fit_ekfac, "kfac_reduce": fit_kfac_reduce}
#: Names of the structures.
STRUCTURES = tuple(FITTERS)


def fit_posterior(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> Posterior:
    """Return the posterior of the training rows that ``run_pass`` goes over.

    Args:
        blocks: what the posterior covers, and what ``run_pass`` computes Jacobians of.

    Raises:
        ConfigError: no such structure.
        FactorizationError: no rows, or a curvature that stays indefinite.
        NonFiniteError: Jacobians or logits that are NaN or infinite.
    """
    if settings.structure not in FITTERS:
        raise ConfigError(f"no posterior structure {settings.structure!r}; there are {', '.join(FITTERS)}")
    return FITTERS[settings.structure](settings, blocks, run_pass)


def needs_sums(structure: str) -> bool:
    """Return whether a structure's passes need the Jacobians' sums over tokens."""
    return structure in ("ekfac", "kfac_reduce")
