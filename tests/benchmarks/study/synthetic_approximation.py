"""Variants of the posterior as ``benchmarks.study.compute.approximation.compare`` returns them, of made-up measures."""

from __future__ import annotations

from typing import Any

ADAPTER = 920_000
WIDTH = 576

#: rank, what it adds to the correlation, size / adapter.
_WIDTHS = ((2, 0.0, 0.5), (10, 0.005, 1.6), (WIDTH, 0.007, 70.0))

#: structure, rank, joint rank, subset, per block, correlation, ratio, size / adapter.
_VARIANTS: tuple[tuple[str, int | None, int | None, str, bool, float, float, float], ...] = (
    ("exact", None, None, "all", False, 1.0, 1.0, 200.0),
    ("exact", None, None, "all", True, 0.980, 1.45, 200.0),
    *(("ekfac", rank, None, "all", False, 0.96 + shift, 1.50 - 2 * shift, size) for rank, shift, size in _WIDTHS),
    ("diagonal", None, None, "all", False, 0.86, 1.9, 2.0),
    ("joint_core", 5, 50, "all", False, 0.98, 1.26, 2.0),
    ("joint_core", 10, 50, "all", False, 0.991, 1.161, 3.5),
    ("joint", None, 100, "all", False, 0.9996, 1.015, 100.0),
    ("exact", None, None, "last_4_layers", False, 0.53, 0.11, 26.0),
    ("exact", None, None, "last_layer", False, -0.08, 0.004, 7.0),
)


def comparison(task: str, seed: int, shift: float = 0.0) -> list[dict[str, Any]]:
    """Return one task and seed; ``shift`` is added to every ratio but the exact posterior's."""
    return [
        {
            "task": task,
            "seed": seed,
            "rows": 200,
            "prior_precision": 31.6227766 + seed,
            "structure": structure,
            "rank": rank,
            "joint_rank": joint_rank,
            "subset": subset,
            "per_block": per_block,
            "correlation": correlation,
            "ratio": ratio + shift * (ratio != 1.0),
            "nll_at_own_prior": None if per_block else 0.32 + 0.01 * (1 - correlation),
            "size_bytes": int(size * ADAPTER),
            "adapter_bytes": ADAPTER,
            "fit_seconds": 12.3456789,
            "predict_seconds_per_row": 0.00123456789,
        }
        for structure, rank, joint_rank, subset, per_block, correlation, ratio, size in _VARIANTS
    ]
