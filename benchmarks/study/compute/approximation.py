"""How good each structure is: its predictive variances against the exact GGN posterior's, on one gathered task.

At one common prior precision, for every test row and contrast: the correlation of the log variances, and the median of
the ratio. Both see the same Jacobians, so the difference is the structure's alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.compute.alternatives import Gaussians
from benchmarks.study.compute.posteriors import fit_stored, posterior_bytes, project_stored
from benchmarks.study.config import StudyConfig
from benchmarks.study.store import SPLITS, Stores, read_stores
from laplora.errors import ConfigError
from laplora.metrics.scores import row_nll
from laplora.posterior.base import Posterior
from laplora.posterior.passes import StructureSettings
from laplora.posterior.subset import select_blocks
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


def compare(config: StudyConfig, task: str, seed: str, rows: int) -> list[dict[str, Any]]:
    """Return every variant's agreement with the exact posterior on the first test rows, its size and its time.

    Args:
        seed: as the command line has it.
        rows: of the test split and of the calibration split; all where there are fewer.

    Raises:
        ConfigError: no such task or seed, too few rows, Jacobians that were not kept, or calibration rows that choose
            no variance at all, or the prior's alone.
    """
    stores = read_stores(_kept_folder(config, task, seed, rows))
    stores = replace(stores, test=stores.test.first(rows), calibration=stores.calibration.first(rows))
    blocks, valid = stores.blocks, stores.test.class_mask[:, 1:]
    exact = fit_stored(stores, StructureSettings("exact", seed=int(seed)), blocks)
    choice = Gaussians.of(stores, exact).validated()
    precision = choice.prior.precision["all"]
    if choice.at_bound:
        raise ConfigError(
            f"{task}, seed {seed}: on these calibration rows the exact posterior's validation goes to the end of its "
            f"range, {precision:.0e}, where all posteriors are alike; compare another seed, or more --rows"
        )
    truth = _variances(exact, stores, precision)[valid]
    result = []
    for variant in VARIANTS:
        started = time.monotonic()
        settings = StructureSettings(
            variant.structure, rank=variant.rank or 10, joint_rank=variant.joint_rank or 50, seed=int(seed)
        )
        only = select_blocks(blocks, variant.subset)
        fits = [fit_stored(stores, settings, part) for part in ([(b,) for b in only] if variant.per_block else [only])]
        middle = time.monotonic()
        variances = torch.stack([_variances(fit, stores, precision) for fit in fits]).sum(0)[valid]
        ended = time.monotonic()
        nll = None
        # At full rank each of the search's hundred precisions goes through every parameter of every row.
        if not variant.per_block and variant.rank != RANKS[-1]:
            view = Gaussians.of(stores, fits[0])
            probs = view.test_under(view.validated().prior).predictive().probs
            nll = float(row_nll(probs, view.test.labels).mean())
        logs = torch.stack([truth.log(), variances.clamp_min(1e-300).log()])
        result.append(
            {
                "task": task,
                "seed": int(seed),
                "rows": len(stores.test.labels),
                "prior_precision": precision,
                **vars(variant),
                "rank": variant.rank and min(variant.rank, max(b.wide for b in blocks)),
                "correlation": float(torch.corrcoef(logs)[0, 1]),
                "ratio": float((variances / truth).median()),
                "nll_at_own_prior": nll,
                "size_bytes": sum(posterior_bytes(fit) for fit in fits),
                "adapter_bytes": 2 * sum(b.wide * b.narrow for b in blocks),
                "fit_seconds": middle - started,
                "predict_seconds_per_row": (ended - middle) / len(stores.test.labels),
            }
        )
        say(f"{task}: {result[-1]}")
    return result


def _kept_folder(config: StudyConfig, task: str, seed: str, rows: int) -> Path:
    """Return the folder of a task and seed whose Jacobians were kept."""
    seeds = {str(s): s for s in config.seeds}
    if task not in config.tasks or seed not in seeds:
        raise ConfigError(
            f"the study {config.name!r} has no task {task!r} with seed {seed!r}: its tasks are "
            f"{', '.join(config.tasks)}, its seeds {', '.join(seeds)}"
        )
    if rows < 2:
        raise ConfigError(f"a correlation needs at least two rows, got --rows {rows}")
    folder = config.folder(task, seeds[seed])
    files = [*(f"{split}.jacobians.safetensors" for split in SPLITS), "gathered.json"]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} holds no {', '.join(missing)}: a study keeps Jacobians only with --keep-jacobians. "
            "Delete result.json there, if any, then run python -m benchmarks.study --keep-jacobians"
        )
    return folder


def _variances(posterior: Posterior, stores: Stores, precision: float) -> torch.Tensor:
    """Return the variances of every test row's contrasts, (rows, classes - 1), nats squared."""
    precisions = torch.full((len(posterior.blocks),), precision, dtype=torch.float64)
    covariance = posterior.covariance(project_stored(stores, posterior, stores.test), precisions)
    return covariance.diagonal(dim1=1, dim2=2)
