"""Every structure by name: the product's, and those that only serve comparison.

``whole``: the exact GGN. ``diagonal``: the GGN's diagonal. ``kfac``: Kronecker factors of single tokens.
"""

from __future__ import annotations

from typing import Any

from benchmarks.structures.curvature.diagonal import fit_diagonal
from benchmarks.structures.curvature.kfac import fit_kfac_expand, fit_kfac_last
from benchmarks.structures.curvature.whole import fit_exact
from laplora.jacobians.blocks import Block
from laplora.posterior.passes import Pass, StructureSettings
from laplora.posterior.structures import FITTERS


def fit_posterior(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> Any:
    """Return the posterior of any structure, as ``laplora.posterior.structures.fit_posterior``."""
    fitters: dict[str, Any] = {
        **FITTERS,
        "exact": fit_exact,
        "diagonal": fit_diagonal,
        "kfac_expand": fit_kfac_expand,
        "kfac_last": fit_kfac_last,
    }
    return fitters[settings.structure](settings, blocks, run_pass)


def needs_tokens(structure: str) -> bool:
    """Return whether a structure's passes need every token's input and gradient."""
    return structure in ("kfac_expand", "kfac_last")
