"""How good each structure is: its predictive variances against the exact GGN posterior's, on one gathered task.

At one common prior precision, for every test row and contrast: the correlation of the log variances, and the median of
the ratio. Both see the same Jacobians, so the difference is the structure's alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.study.compute.alternatives import Gaussians, gaussian_predictive
from benchmarks.study.compute.methods import Stores, posterior_bytes, read_stores
from benchmarks.study.compute.posteriors import fit_stored, project_stored
from benchmarks.study.config import StudyConfig
from benchmarks.study.store import StoredSplit, read_gathered
from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block
from laplora.metrics.scores import row_nll
from laplora.posterior.base import Posterior
from laplora.posterior.passes import StructureSettings
from laplora.posterior.subset import select_blocks
from laplora.prior.validation import choose_by_validation
from training.workspace.terminal import say

#: Kept eigenvectors of the wide factors; 10,000 is all of them.
RANKS = (2, 5, 10, 20, 10_000)
JOINT_RANKS = (10, 20, 50, 100)


@dataclass(frozen=True)
class Variant:
    """One posterior to compare.

    Attributes:
        subset: of the blocks; ``per block`` fits each block alone and adds the covariances.
    """

    structure: str
    rank: int | None
    joint_rank: int | None
    subset: str = "all"
    per_block: bool = False


def variants() -> Iterator[Variant]:
    """Yield what is compared, in the table's order."""
    yield Variant("exact", None, None)
    yield Variant("exact", None, None, per_block=True)
    for rank in RANKS:
        yield Variant("ekfac", rank, None)
    for rank in RANKS:
        yield Variant("kfac_reduce", rank, None)
    yield Variant("kfac_expand", 10, None)
    yield Variant("kfac_last", 10, None)
    yield Variant("diagonal", None, None)
    for rank in RANKS[:-1]:
        yield Variant("joint_core", rank, 50)
    for rank in JOINT_RANKS:
        yield Variant("joint", None, rank)
    yield Variant("ella", None, 50)
    for subset in ("values_b", "last_4_layers", "last_layer"):
        yield Variant("exact", None, None, subset)
    yield Variant("ekfac", 10, None, "values_b")


def compare(config: StudyConfig, task: str, seed: int, rows: int) -> list[dict[str, Any]]:
    """Return every variant's agreement with the exact posterior on the first test rows, its size and its time.

    Raises:
        ConfigError: calibration rows that choose no variance at all, or the prior's alone.
    """
    folder = config.folder(task, seed)
    found = read_gathered(folder)
    blocks = tuple(Block(**b) for b in found["blocks"])
    stores = read_stores(folder, blocks, found["squared_distances"])
    stores = replace(stores, test=first_rows(stores.test, rows), calibration=first_rows(stores.calibration, rows))
    calibration, test = stores.rows("calibration"), stores.rows("test")
    exact = fit_stored(StructureSettings("exact", seed=seed), stores.train, blocks, blocks)
    projected = project_stored(exact, stores.calibration, blocks)
    choice = choose_by_validation(exact, projected, calibration.labels, calibration.class_mask, "scalar")
    if choice.at_bound:
        raise ConfigError(
            f"{task}, seed {seed}: on these calibration rows the exact posterior's validation goes to the end of its "
            f"range, {choice.prior.precision['all']:.0e}, where all posteriors are alike; compare another seed, or "
            "more --rows"
        )
    precision = choice.prior.precision["all"]
    valid = stores.test.class_mask[:, 1:]
    truth = variances(exact, stores, blocks, precision, valid)
    adapter = 2 * sum(b.wide * b.narrow for b in blocks)
    result = []
    for variant in variants():
        started = time.monotonic()
        fits = [fitted(variant, stores, blocks, only, seed) for only in parts(variant, blocks)]
        middle = time.monotonic()
        got = sum((variances(p, stores, blocks, precision, valid) for p in fits), torch.zeros_like(truth))
        ended = time.monotonic()
        validated = None
        # At full rank each of the search's hundred precisions goes through every parameter of every row.
        if len(fits) == 1 and variant.rank != RANKS[-1]:
            gaussians = Gaussians(
                fits[0],
                project_stored(fits[0], stores.calibration, blocks),
                project_stored(fits[0], stores.test, blocks),
            )
            own = choose_by_validation(
                fits[0], gaussians.calibration, calibration.labels, calibration.class_mask, "scalar"
            ).prior
            validated = float(
                row_nll(gaussian_predictive(test, gaussians.covariances(own)[1]).probs, test.labels).mean()
            )
        logs = torch.stack([truth.log(), got.clamp_min(1e-300).log()])
        result.append(
            {
                "task": task,
                "seed": seed,
                "rows": len(test.labels),
                "prior_precision": precision,
                "structure": variant.structure,
                "rank": None if variant.rank is None else min(variant.rank, max(b.wide for b in blocks)),
                "joint_rank": variant.joint_rank,
                "subset": variant.subset,
                "per_block": variant.per_block,
                "correlation": float(torch.corrcoef(logs)[0, 1]),
                "ratio": float((got / truth).median()),
                "nll_at_own_prior": validated,
                "size_bytes": sum(posterior_bytes(p) for p in fits),
                "adapter_bytes": adapter,
                "fit_seconds": middle - started,
                "predict_seconds_per_row": (ended - middle) / len(test.labels),
            }
        )
        say(f"{task}: {result[-1]}")
    return result


def parts(variant: Variant, blocks: tuple[Block, ...]) -> list[tuple[Block, ...]]:
    """Return the sets of blocks that are fitted each on its own."""
    only = select_blocks(blocks, variant.subset)
    return [(b,) for b in only] if variant.per_block else [only]


def fitted(
    variant: Variant, stores: Stores, blocks: tuple[Block, ...], only: tuple[Block, ...], seed: int
) -> Posterior:
    """Return one fitted posterior."""
    settings = StructureSettings(
        variant.structure, rank=variant.rank or 10, joint_rank=variant.joint_rank or 50, seed=seed
    )
    return fit_stored(settings, stores.train, blocks, only)


def variances(
    posterior: Posterior, stores: Stores, blocks: tuple[Block, ...], precision: float, valid: torch.Tensor
) -> torch.Tensor:
    """Return the variances of every test row's contrasts with possible classes, flat, nats squared."""
    precisions = torch.full((len(posterior.blocks),), precision, dtype=torch.float64)
    covariance = posterior.covariance(project_stored(posterior, stores.test, blocks), precisions)
    return covariance.diagonal(dim1=1, dim2=2)[valid]


def first_rows(split: StoredSplit, rows: int) -> StoredSplit:
    """Return a split's first rows."""
    return StoredSplit(
        split.jacobians[:rows],
        split.logits[:rows],
        split.class_mask[:rows],
        split.labels[:rows],
        split.label_mass[:rows],
        split.hidden[:rows],
        {},
    )
