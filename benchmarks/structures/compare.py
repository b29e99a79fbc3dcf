"""How good each structure is: its predictive variances against the exact GGN posterior's, on one task.

At one common prior precision, for every test row and contrast: the correlation of the log variances, and the median of
the ratio. Both see the same Jacobians, so the difference is the structure's alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.structures.curvature import Compared
from benchmarks.structures.fits import fit_gathered, posterior_bytes, project_gathered
from benchmarks.structures.rows import Gathered
from laplora.errors import ConfigError
from laplora.linearised import contrast_mean
from laplora.posterior.base import ProjectedJacobians, block_precisions
from laplora.posterior.passes import StructureSettings
from laplora.posterior.subset import select_blocks
from laplora.prior.search import PriorChoice, predictive_nll
from laplora.prior.validation import choose_by_validation
from training.workspace.terminal import say

#: Kept eigenvectors of the wide factors; 10,000 is all of them.
RANKS = (2, 5, 10, 20, 10_000)
JOINT_RANKS = (10, 20, 50, 100)


@dataclass(frozen=True)
class Variant:
    """One posterior to compare; ``per_block`` fits each block of the subset alone and adds the covariances."""

    structure: str
    rank: int | None = None
    joint_rank: int | None = None
    subset: str = "all"
    per_block: bool = False


#: What is compared, in the table's order.
VARIANTS = (
    Variant("exact"),
    Variant("exact", per_block=True),
    *(Variant("ekfac", rank) for rank in RANKS),
    *(Variant("kfac_reduce", rank) for rank in RANKS),
    Variant("kfac_expand", 10),
    Variant("kfac_last", 10),
    Variant("diagonal"),
    *(Variant("joint_core", rank, 50) for rank in RANKS[:-1]),
    *(Variant("joint", joint_rank=rank) for rank in JOINT_RANKS),
    Variant("ella", joint_rank=50),
    *(Variant("exact", subset=subset) for subset in ("values_b", "last_4_layers", "last_layer")),
    Variant("ekfac", 10, subset="values_b"),
)


def compare(gathered: Gathered, task: str, seed: int) -> list[dict[str, Any]]:
    """Return every variant's agreement with the exact posterior on the test rows, its size and its time.

    Raises:
        ConfigError: fewer than two test rows, or calibration rows that choose no variance at all, or the prior's alone.
    """
    if len(gathered.test.labels) < 2:
        raise ConfigError(f"a correlation needs at least two rows, {task} has {len(gathered.test.labels)}")
    blocks, valid = gathered.blocks, gathered.test.class_mask[:, 1:]
    exact = fit_gathered(gathered, StructureSettings("exact", seed=seed), blocks)
    choice = _validated(gathered, exact)
    precision = choice.prior.precision["all"]
    if choice.at_bound:
        raise ConfigError(
            f"{task}, seed {seed}: on these calibration rows the exact posterior's validation goes to the end of its "
            f"range, {precision:.0e}, where all posteriors are alike; compare another seed, or more --rows"
        )
    truth = _variances(exact, project_gathered(gathered, exact, gathered.test), precision)[valid]
    result = []
    for variant in VARIANTS:
        started = time.monotonic()
        settings = StructureSettings(
            variant.structure, rank=variant.rank or 10, joint_rank=variant.joint_rank or 50, seed=seed
        )
        only = select_blocks(blocks, variant.subset)
        parts = [(b,) for b in only] if variant.per_block else [only]
        fits = [fit_gathered(gathered, settings, part) for part in parts]
        middle = time.monotonic()
        projected = [project_gathered(gathered, fit, gathered.test) for fit in fits]
        found = [_variances(fit, rows, precision) for fit, rows in zip(fits, projected, strict=True)]
        variances = torch.stack(found).sum(0)[valid]
        ended = time.monotonic()
        # At full rank each of the search's hundred precisions goes through every parameter of every row.
        searched = not variant.per_block and variant.rank != RANKS[-1]
        logs = torch.stack([truth.log(), variances.clamp_min(1e-300).log()])
        result.append(
            {
                "task": task,
                "seed": seed,
                "rows": len(gathered.test.labels),
                "prior_precision": precision,
                **vars(variant),
                "rank": variant.rank and min(variant.rank, max(b.wide for b in blocks)),
                "correlation": float(torch.corrcoef(logs)[0, 1]),
                "ratio": float((variances / truth).median()),
                "nll_at_own_prior": _nll_at_own_prior(gathered, fits[0], projected[0]) if searched else None,
                "size_bytes": sum(posterior_bytes(fit) for fit in fits),
                "adapter_bytes": 2 * sum(b.wide * b.narrow for b in blocks),
                "fit_seconds": middle - started,
                "predict_seconds_per_row": (ended - middle) / len(gathered.test.labels),
            }
        )
        say(f"{task}: {result[-1]}")
    return result


def _validated(gathered: Gathered, posterior: Compared) -> PriorChoice:
    """Return the prior that the calibration rows choose."""
    rows = gathered.calibration
    return choose_by_validation(
        posterior, project_gathered(gathered, posterior, rows), rows.labels, rows.class_mask, "scalar"
    )


def _nll_at_own_prior(gathered: Gathered, posterior: Compared, projected: ProjectedJacobians) -> float:
    """Return the test rows' NLL, nats, under the prior that the posterior's own validation chooses."""
    prior, rows = _validated(gathered, posterior).prior, gathered.test
    covariance = posterior.covariance(projected, block_precisions(prior, posterior.blocks))
    return predictive_nll(contrast_mean(rows.logits.double()), covariance, rows.labels, rows.class_mask)


def _variances(posterior: Compared, projected: ProjectedJacobians, precision: float) -> torch.Tensor:
    """Return the variances of every row's contrasts, (rows, classes - 1), nats squared."""
    precisions = torch.full((len(posterior.blocks),), precision, dtype=torch.float64)
    return posterior.covariance(projected, precisions).diagonal(dim1=1, dim2=2)
