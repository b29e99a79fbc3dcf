"""How time and memory of an answer grow with everything that it can grow with, and those of a fit with its rows.

On the default artifact's model in bfloat16; where the axis is in the model (the adapter's rank, layers) on random
weights of its shapes; the basis rank on the projection alone, which a forward pass would hide. The exponent of an axis
is the slope of a line through the upper half of its sizes, on logarithmic axes. All values are in growth.json, and
growth.png shows them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from benchmarks.harness.allocation import peak_bytes
from benchmarks.harness.llama7b import random_llama
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import load_subject, random_batch, with_classes
from benchmarks.harness.timing import exactly, in_turns, spread
from benchmarks.speed.parts import subset
from benchmarks.speed.parts.fit import fit
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.predictive.member_outputs import MemberSet, member_outputs

#: SmolLM2-135M's shapes, as arguments of a LlamaConfig; the real one has 30 layers.
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
}
_COLUMNS = 4
TURNS = 3
#: Beyond 1 for what is linear: timing noise, and caches that the larger sizes leave.
ALLOWED = 1.1


@dataclass(frozen=True)
class Axis:
    """One thing that grows: what is measured, the function of each size, ascending, and limits of the exponents."""

    name: str
    what: str
    sizes: dict[int, Callable[[], Any]]
    time_limit: float = ALLOWED
    memory_limit: float = ALLOWED


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the exponents of every axis; write growth.json and growth.png."""
    values = []
    for axis in axes():
        sizes = list(axis.sizes)
        times = in_turns({str(size): function for size, function in axis.sizes.items()}, 1 if quick else TURNS)
        peaks = [peak_bytes(function) for function in axis.sizes.values()]
        seconds = [statistics.median(t) for t in times.values()]
        time_exponent = spread([exponent(sizes, turn) for turn in zip(*times.values(), strict=True)])
        yield conditions.record(f"growth: {axis.name}, time", time_exponent, "the exponent", arithmetic=axis.time_limit)
        memory_exponent = exactly(exponent(sizes, peaks))
        yield conditions.record(
            f"growth: {axis.name}, memory", memory_exponent, "the exponent", arithmetic=axis.memory_limit
        )
        values.append({"axis": axis.name, "what": axis.what, "sizes": sizes, "seconds": seconds, "bytes": peaks})
    measured = {"hardware": conditions.hardware, **conditions.measured}
    text = json.dumps({"measured": measured, "axes": values}, indent=1)
    (conditions.out / "growth.json").write_text(text + "\n", encoding="utf-8")
    draw(values, conditions.out / "growth.png")


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of the logarithms over the upper half of the sizes, at least two, by least squares."""
    upper = slice(len(sizes) // 2 if len(sizes) > 3 else -2, None)
    x, y = ([math.log(v) for v in vs[upper]] for vs in (sizes, values))
    return statistics.linear_regression(x, y).slope


def axes() -> Iterator[Axis]:
    """Yield the axes, each built when its turn comes."""
    members = load_subject("bfloat16")
    yield Axis("rows", "answer, 32 tokens", {n: answer(members, n, 32) for n in (1, 2, 4, 8, 16, 32)})
    tokens = (16, 32, 64, 128, 256, 512)
    yield Axis(
        "tokens",
        "answer, 2 rows",
        {n: answer(members, 2, n) for n in tokens},
        time_limit=ALLOWED - 1 + exponent(tokens, [products(n) for n in tokens]),
    )
    classes = (2, 3, 5, 9, 17, 33)
    yield Axis("classes", "answer, 2 x 32 tokens", {n: answer(with_classes(members, n), 2, 32) for n in classes})
    # A second pass needs the bases, and the rest of a fit is the same for all rows: memory stands still.
    yield Axis("training rows", "fit, 16 tokens", {n: fitting(members, n) for n in (8, 16, 32, 64)}, memory_limit=0.05)
    few = random_members(layers=4, rank=8)
    yield Axis("basis rank k", "projection, 8 rows", {k: projection(few, k) for k in (4, 8, 16, 32, 64, 128)})
    ranks, layers = (4, 8, 16, 32, 64, 128), (1, 2, 4, 8, 16, 32)
    yield Axis("adapter rank r", "answer, 8 x 32", {r: answer(random_members(layers=4, rank=r), 8, 32) for r in ranks})
    yield Axis("layers", "answer, 8 x 32", {n: answer(random_members(layers=n, rank=8), 8, 32) for n in layers})


def products(tokens: int) -> float:
    """Return what a row's multiplications are proportional to: those with weights, and causal attention's."""
    d, m, g = (SMOLLM2[k] for k in ("hidden_size", "intermediate_size", "num_key_value_heads"))
    return tokens * (2 * d * d + 2 * d * 64 * g + 3 * d * m + tokens * d)


def answer(members: MemberSet, rows: int, tokens: int) -> Callable[[], Any]:
    """Return a function that answers rows of random tokens with their covariance."""
    batch = random_batch(members, rows, tokens)
    return lambda: member_outputs(members, batch, {("single", True)})


def fitting(members: MemberSet, rows: int) -> Callable[[], Any]:
    """Return a function that fits the default posterior on rows of 16 random tokens, 8 at a time."""
    blocks, batches = find_blocks(members.model, 2), [random_batch(members, 8, 16)] * (rows // 8)
    return lambda: fit(members, blocks, batches, "joint_core")


def projection(members: MemberSet, rank: int) -> Callable[[], Any]:
    """Return a function that gives the covariance of 8 rows' Jacobians under a posterior of that mean basis rank."""
    member = with_posterior(members, rank).trained
    batch = random_batch(members, 8, 32)
    jacobians = contrast_jacobians(members.model, batch, members.readout, member.posterior.blocks, sums=False)
    return lambda: member.posterior.covariance_of(jacobians, member.precisions)


def random_members(*, layers: int, rank: int) -> MemberSet:
    """Return random weights of SmolLM2's shapes, with a posterior."""
    return with_posterior(random_llama(layers, device="cpu", quantization="none", rank=rank, shape=SMOLLM2))


def with_posterior(members: MemberSet, rank: int = 5) -> MemberSet:
    """Return the same with a ``joint_core`` posterior of that mean rank, fitted on 8 short random rows."""
    return subset.with_posterior(members, batches=[random_batch(members, 8, 8)], rank=rank)


def draw(axes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the figure of growth.json's axes: time and memory over the sizes, a dashed line of slope 1."""
    lines = -(-len(axes) // _COLUMNS)
    figure = Figure(figsize=(3.2 * _COLUMNS, 3.0 * lines), layout="constrained")
    panels = list(figure.subplots(lines, _COLUMNS, squeeze=False, sharey=True).flat)
    for panel, axis in zip(panels, axes, strict=False):
        _panel(panel, axis)
    for panel in panels[len(axes) :]:
        panel.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def _panel(panel: Axes, axis: Mapping[str, Any]) -> None:
    sizes = axis["sizes"]
    for key, label, color, marker in (
        ("seconds", "time, in units of its least", "#1b6ca8", "o"),
        ("bytes", "peak memory above the model, in units of its least", "#c8553d", "s"),
    ):
        values = axis[key]
        panel.loglog(sizes, [v / min(values) for v in values], marker=marker, color=color, label=label, markersize=4)
    panel.loglog(sizes, [s / sizes[0] for s in sizes], "--", color="0.6", label="slope 1", zorder=0)
    end = f"{axis['seconds'][-1]:.2g} s, {axis['bytes'][-1] / 1e6:.3g} MB at {sizes[-1]}"
    panel.set_title(f"{axis['axis']}: {axis['what']}\n{end}", fontsize=9)
    for scale, ticks in ((panel.xaxis, sizes), (panel.yaxis, [2**i for i in range(-2, 12)])):
        scale.set_major_locator(FixedLocator(ticks))
        scale.set_minor_locator(NullLocator())
        scale.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(alpha=0.3)
