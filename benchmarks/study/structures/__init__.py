"""Structures of the posterior that only serve comparison, beside those of ``laplora.posterior.structures``.

``kfac`` has the Kronecker factors of single tokens, ``diagonal`` one curvature per parameter, ``ella`` features of the
tangent kernel. They lose (docs/results.md), so no artifact holds one. ``fit_posterior`` here knows both sets by name.
"""

from __future__ import annotations

from benchmarks.study.structures.diagonal import fit_diagonal
from benchmarks.study.structures.ella import fit_ella
from benchmarks.study.structures.kfac import fit_kfac_expand, fit_kfac_last
from laplora.jacobians.blocks import Block
from laplora.posterior import structures
from laplora.posterior.base import Posterior
from laplora.posterior.passes import Pass, StructureSettings

#: How each structure is fitted, those of the library and those of the study.
FITTERS: dict[str, structures.Fitter] = {
    **structures.FITTERS,
    "kfac_expand": fit_kfac_expand,
    "kfac_last": fit_kfac_last,
    "diagonal": fit_diagonal,
    "ella": fit_ella,
}


def fit_posterior(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> Posterior:
    """Return the posterior of the training rows that ``run_pass`` goes over, of any structure of ``FITTERS``."""
    return FITTERS[settings.structure](settings, blocks, run_pass)


def needs_tokens(structure: str) -> bool:
    """Return whether a structure's passes need Jacobians with every token's input and gradient."""
    return structure in ("kfac_expand", "kfac_last")
