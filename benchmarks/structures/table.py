"""The comparison of structures in docs/results.md: its text and a table per task, from structures.json."""

from __future__ import annotations

import pandas as pd

from training.report.markdown import escaped, markdown_table

#: A structure whose variances lie in both bands can stand for the exact posterior.
CORRELATION_BAND = (0.99, 1.0)
RATIO_BAND = (0.8, 1.25)

#: Of the layers next to the output alone: what a backward pass that stops early would leave.
LATE = ("last_4_layers", "last_layer")

_STRUCTURES = {
    "exact": "exact GGN",
    "ekfac": "EKFAC",
    "kfac_reduce": "KFAC-reduce",
    "kfac_expand": "KFAC-expand",
    "kfac_last": "KFAC, last token",
    "diagonal": "diagonal",
    "joint_core": "joint core",
    "joint": "joint",
    "ella": "ELLA",
}
_SUBSETS = {"values_b": "lora_B of the values", "last_4_layers": "last 4 layers", "last_layer": "last layer"}
_METHOD = """\
Every posterior is fitted on the same Jacobians and held against the exact GGN posterior (dual form) on the same
test rows, all under one prior precision: the scalar that the exact posterior's validation chooses. *Correlation*: of
the logarithms of the predictive variances of all rows and contrasts; *ratio*: the median of variance / exact variance;
*NLL*: of the same rows, each posterior under the precision that its validation chooses. *Rank*: kept eigenvectors
of every wide Kronecker factor, *full* being all of them; *joint rank*: directions across matrices. *Size*: of the
posterior's file, bases in bfloat16, in units of the adapter's. Times are on the Jacobians, without the model: of
the fit, and of a row's variances. Several seeds: means.
"""


def variants_of(records: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return a task's variants, means over its seeds, in the order in which they were compared.

    Beside the measures: ``series`` (structure and subset, the same for all its ranks), ``ranks`` (as the table has
    them, "full" where a rank is the whole width, "-" where the structure has none), ``size`` in units of the adapter's,
    ``late`` (of late layers alone) and ``within`` (in both target bands).
    """
    of_task = records[records.task == task].assign(size=lambda r: r.size_bytes / r.adapter_bytes)
    keys, means = ["structure", "subset", "per_block", "rank", "joint_rank"], {}
    for name in ("correlation", "ratio", "nll_at_own_prior", "size", "fit_seconds", "predict_seconds_per_row"):
        means[name] = (name, "mean")
    of_task = of_task.astype({name: float for name in ("correlation", "nll_at_own_prior", "rank", "joint_rank")})
    grouped = of_task.groupby(keys, sort=False, dropna=False).agg(**means).reset_index()
    # Every comparison holds the whole width, and a larger rank than that is the same.
    width = of_task["rank"].max()
    ranks = ["-" if pd.isna(r) else "full" if r == width else f"{r:.0f}" for r in grouped["rank"]]
    joint_ranks = ["-" if pd.isna(r) else f"{r:.0f}" for r in grouped.joint_rank]
    return grouped.assign(
        series=[_series(*parts) for parts in zip(grouped.structure, grouped.subset, grouped.per_block, strict=True)],
        ranks=list(zip(ranks, joint_ranks, strict=True)),
        late=grouped.subset.isin(LATE),
        within=grouped.correlation.between(*CORRELATION_BAND) & grouped.ratio.between(*RATIO_BAND),
    )


def approximation_table(records: pd.DataFrame) -> str:
    """Return the text and a table per task, as Markdown."""
    by_task = {task: variants_of(records, task) for task in sorted(set(records.task))}
    late = pd.concat([variants[variants.late] for variants in by_task.values()])
    ratios = " to ".join(_brief(end) for end in (late.ratio.min(), late.ratio.max()))
    parts = [
        _METHOD,
        f"Target bands: a correlation of at least {CORRELATION_BAND[0]:g}, a ratio from {RATIO_BAND[0]:g} to "
        f"{RATIO_BAND[1]:g}.\n",
        "⚠ marks posteriors of the late layers alone, as a backward pass that stops early would give them. They are\n"
        f"there as a warning: correlations of {late.correlation.min():.2f} to {late.correlation.max():.2f} and "
        f"ratios of {ratios} to the exact\nvariances.\n",
    ]
    for task, variants in by_task.items():
        parts += [_caption(task, records[records.task == task], variants), _task_table(variants)]
    return "\n".join(parts)


def _task_table(variants: pd.DataFrame) -> str:
    heading = ["structure", "rank", "joint rank", "correlation", "ratio", "NLL", "size / adapter", "fit, s", "ms a row"]
    rows = [
        [
            *("⚠ " * v.late + escaped(v.series), *v.ranks),
            *(f"{v.correlation:.3f}", _brief(v.ratio)),
            *("-" if pd.isna(v.nll_at_own_prior) else f"{v.nll_at_own_prior:.3f}", _brief(v.size)),
            *(f"{v.fit_seconds:.1f}", f"{1000 * v.predict_seconds_per_row:.1f}"),
        ]
        for v in variants.itertuples()
    ]
    return markdown_table(heading, rows)


def _caption(task: str, records: pd.DataFrame, variants: pd.DataFrame) -> str:
    """Return the task's seeds, rows and precisions, and the smallest structure within both bands."""
    seeds = records.drop_duplicates("seed")
    rows = " or ".join(map(str, dict.fromkeys(seeds.rows)))
    precisions = ", ".join(f"{s.prior_precision:.3g} (seed {s.seed})" for s in seeds.itertuples())
    # The exact posterior is what is approximated.
    good = variants[variants.within & (variants.series != _STRUCTURES["exact"])]
    smallest = "none but the exact posterior itself"
    if len(good):
        best = good.loc[good["size"].idxmin()]
        ranks = [f"{word} {rank}" for word, rank in zip(("rank", "joint rank"), best.ranks, strict=True) if rank != "-"]
        smallest = f"{', '.join([best.series, *ranks])}, {_brief(best['size'])} × the adapter"
    return (
        f"**{escaped(task)}**: {rows} test rows, prior precision {precisions}, adapter "
        f"{seeds.adapter_bytes.iloc[0] / 1e6:.2f} MB.\nSmallest within both bands: {escaped(smallest)}.\n"
    )


def _series(structure: str, subset: str, per_block: bool) -> str:
    return _STRUCTURES[structure] + ", per block" * per_block + (f", {_SUBSETS[subset]}" if subset != "all" else "")


def _brief(value: float) -> str:
    """Return three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
