"""The posterior covariance of the weights themselves, times a vector: ``Sigma v`` of a joint posterior.

With the notation of ``laplora.posterior.joint``, ``v_g`` the part of a vector in group g's blocks, ``a_g = v_g Q_g^T``
its coordinates and ``s = (P + L^T L)^-1 a``,

    ``(Sigma v)_g = v_g / lambda_g + (s_g - a_g / lambda_g) Q_g``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.posterior.base import Posterior
from laplora.posterior.joint import JointPosterior, build_joint_posterior
from laplora.posterior.many_classes import ManyClassPosterior


def joint_of(posterior: Posterior, what: str = "conditioning") -> JointPosterior:
    """Return a posterior whose rows vary together, for ``what``; ConfigError where it is of another structure."""
    if isinstance(posterior, JointPosterior) and not isinstance(posterior, ManyClassPosterior):
        return posterior
    raise ConfigError(
        f"{what} takes the covariance between rows, which structure {posterior.structure!r} of this posterior "
        "does not have: use structure joint_core, joint or exact, and so few classes that every contrast is computed"
    )


def solve(posterior: JointPosterior, vector: Sequence[torch.Tensor], precisions: torch.Tensor) -> list[torch.Tensor]:
    """Return ``Sigma v``, per block (wide, narrow) float64.

    Args:
        vector: per block (wide, narrow), what has the shape of the weights.
        precisions: (blocks,) float64, as of ``laplora.posterior.base.block_precisions``.

    Raises:
        PriorError: precisions that differ inside a group.
        NonFiniteError: a precision that is NaN.
    """
    parts = tuple(BlockJacobian(part.double()[None, None]) for part in vector)
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    along = posterior.project(ContrastJacobians(nothing, nothing, parts)).kept[0, 0]
    by_column = posterior.by_column(precisions)
    curved = posterior.factor.T @ posterior.factor + torch.diag(by_column)
    moved = torch.linalg.solve(curved, along) - along / by_column
    result = []
    for i, block in enumerate(posterior.blocks):
        back = moved[posterior.columns[block.group]] @ posterior.directions[i].double()
        if posterior.wide:
            wide, narrow = posterior.wide[i].double(), posterior.narrow[i].double()
            matrix = wide @ back.view(-1, len(narrow)) @ narrow.T
        else:
            matrix = back.view(block.wide, block.narrow)
        result.append(vector[i].double() / precisions[i] + matrix)
    return result


def restrict(posterior: JointPosterior, blocks: Sequence[Block]) -> JointPosterior:
    """Return the posterior of some of its blocks, the others fixed at their trained weights.

    Its precision is that part of the precision of all, so it takes no pass over the rows.

    Raises:
        ConfigError: a block that the posterior does not cover, or none.
    """
    places = {block.name: i for i, block in enumerate(posterior.blocks)}
    missing = [block.name for block in blocks if block.name not in places]
    if missing or not blocks:
        raise ConfigError(f"the posterior does not cover {missing[:1] or 'no blocks'}: give some of its own blocks")
    if tuple(blocks) == posterior.blocks:
        return posterior
    kept = [places[block.name] for block in blocks]
    factor = [
        posterior.factor[:, posterior.columns[posterior.blocks[i].group]] @ posterior.directions[i].double()
        for i in kept
    ]
    return build_joint_posterior(
        tuple(blocks),
        factor,
        rows=posterior.rows,
        structure=posterior.structure,
        direction_dtype=torch.float64,
        wide=[posterior.wide[i] for i in kept] if posterior.wide else (),
        narrow=[posterior.narrow[i] for i in kept] if posterior.narrow else (),
    )
