"""The comparison of structures in docs/results.md: its text, its picture and a table per task, from the JSON file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.study.pages.markdown import escaped, markdown_table
from benchmarks.study.results.approximation_records import VariantRecord

PLOT = "approximation.png"

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
_UNPUBLISHED = "Nothing is published of it yet: `python -m benchmarks.study --approximation TASK SEED` measures it.\n"
_METHOD = """\
Every posterior is fitted on the same stored Jacobians and held against the exact GGN posterior (dual form) on the same
test rows, all under one prior precision: the scalar that the exact posterior's validation chooses. *Correlation*: of
the logarithms of the predictive variances of all rows and contrasts; *ratio*: the median of variance / exact variance;
*NLL*: of the same rows, each posterior under the precision that its own validation chooses. *Rank*: kept eigenvectors
of every wide Kronecker factor, *full* being all of them; *joint rank*: directions across matrices. *Size*: of the
posterior's file, bases in bfloat16, in units of the adapter's. Times are on the stored Jacobians, without the model: of
the fit, and of a row's variances. Several seeds: means.
"""


@dataclass(frozen=True)
class Variant:
    """One variant of the posterior on one task, its measures means over seeds.

    Attributes:
        series: structure and subset, the same for all its ranks.
        rank: as the table has it, "full" where it is the whole width; None where the structure has none.
        size: in units of the adapter's.
        late: whether it covers late layers alone.
    """

    series: str
    rank: str | None
    joint_rank: int | None
    late: bool
    correlation: float | None
    ratio: float
    nll: float | None
    size: float
    fit_seconds: float
    predict_seconds_per_row: float

    @property
    def within(self) -> bool:
        """Whether it lies in both target bands."""
        low, high = CORRELATION_BAND
        inside = self.correlation is not None and low <= self.correlation <= high
        return inside and RATIO_BAND[0] <= self.ratio <= RATIO_BAND[1]

    @property
    def title(self) -> str:
        """Return "joint core, rank 10, joint rank 50"."""
        ranks = [f"{word} {n}" for word, n in (("rank", self.rank), ("joint rank", self.joint_rank)) if n is not None]
        return ", ".join([self.series, *ranks])


def variants_of(records: Sequence[VariantRecord], task: str) -> tuple[Variant, ...]:
    """Return a task's variants, means over its seeds, in the order in which they were compared."""
    own = [r for r in records if r.task == task]
    # Every comparison holds the whole width, and a larger rank than that is the same.
    width = max((r.rank for r in own if r.rank is not None), default=0)
    groups: dict[tuple[Any, ...], list[VariantRecord]] = {}
    for r in own:
        groups.setdefault((r.structure, r.subset, r.per_block, r.rank, r.joint_rank), []).append(r)
    return tuple(
        Variant(
            series=_series(structure, subset, per_block),
            rank=None if rank is None else "full" if rank == width else str(rank),
            joint_rank=joint_rank,
            late=subset in LATE,
            correlation=_mean(found, lambda r: r.correlation),
            ratio=fmean(r.ratio for r in found),
            nll=_mean(found, lambda r: r.nll_at_own_prior),
            size=fmean(r.size_bytes / r.adapter_bytes for r in found),
            fit_seconds=fmean(r.fit_seconds for r in found),
            predict_seconds_per_row=fmean(r.predict_seconds_per_row for r in found),
        )
        for (structure, subset, per_block, rank, joint_rank), found in groups.items()
    )


def approximation_table(records: Sequence[VariantRecord]) -> str:
    """Return the text, the picture and a table per task, as Markdown; one sentence where nothing is published."""
    if not records:
        return _UNPUBLISHED
    by_task = {task: variants_of(records, task) for task in sorted({r.task for r in records})}
    parts = [_METHOD, _bands(), f"![agreement with the exact posterior against size](results/{PLOT})\n"]
    late = [v for variants in by_task.values() for v in variants if v.late]
    if late:
        parts.insert(2, _warning(late))
    for task, variants in by_task.items():
        parts += [_caption(task, [r for r in records if r.task == task], variants), _task_table(variants)]
    return "\n".join(parts)


def _task_table(variants: Sequence[Variant]) -> str:
    heading = ["structure", "rank", "joint rank", "correlation", "ratio", "NLL", "size / adapter", "fit, s", "ms a row"]
    lines = [heading]
    for v in variants:
        title = escaped(v.series)
        lines.append(
            [
                f"⚠ {title}" if v.late else title,
                v.rank or "-",
                "-" if v.joint_rank is None else str(v.joint_rank),
                "-" if v.correlation is None else f"{v.correlation:.3f}",
                _brief(v.ratio),
                "-" if v.nll is None else f"{v.nll:.3f}",
                _brief(v.size),
                f"{v.fit_seconds:.1f}",
                f"{1000 * v.predict_seconds_per_row:.1f}",
            ]
        )
    return markdown_table(lines)


def _caption(task: str, own: Sequence[VariantRecord], variants: Sequence[Variant]) -> str:
    """Return the task's seeds, rows and precisions, and the smallest structure within both bands."""
    seeds = {r.seed: r for r in own}
    rows = " or ".join(dict.fromkeys(str(r.rows) for r in seeds.values()))
    precisions = ", ".join(f"{r.prior_precision:.3g} (seed {seed})" for seed, r in seeds.items())
    adapter = own[0].adapter_bytes / 1e6
    # The exact posterior is what is approximated.
    good = [v for v in variants if v.within and v.series != _STRUCTURES["exact"]]
    best = min(good, key=lambda v: v.size, default=None)
    smallest = f"{best.title}, {_brief(best.size)} × the adapter" if best else "none but the exact posterior itself"
    return (
        f"**{escaped(task)}**: {rows} test rows, prior precision {precisions}, adapter {adapter:.2f} MB.\n"
        f"Smallest within both bands: {escaped(smallest)}.\n"
    )


def _bands() -> str:
    return (
        f"Target bands: a correlation of at least {CORRELATION_BAND[0]:g}, a ratio from {RATIO_BAND[0]:g} to "
        f"{RATIO_BAND[1]:g}.\n"
    )


def _warning(late: Sequence[Variant]) -> str:
    """Return what the marked rows are, with the range of what they reach."""
    correlations = [v.correlation for v in late if v.correlation is not None]
    reached = f"correlations of {min(correlations):.2f} to {max(correlations):.2f} and " if correlations else ""
    ratios = [v.ratio for v in late]
    return (
        "⚠ marks posteriors of the late layers alone, as a backward pass that stops early would give them. They are\n"
        f"there as a warning: {reached}ratios of {_brief(min(ratios))} to {_brief(max(ratios))} to the exact\n"
        "variances.\n"
    )


def _series(structure: str, subset: str, per_block: bool) -> str:
    title = _STRUCTURES.get(structure, structure)
    return title + ", per block" * per_block + (f", {_SUBSETS.get(subset, subset)}" if subset != "all" else "")


def _mean(records: Sequence[VariantRecord], value: Callable[[VariantRecord], float | None]) -> float | None:
    found = [v for r in records if (v := value(r)) is not None]
    return fmean(found) if found else None


def _brief(value: float) -> str:
    """Return three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
