"""The sentence of docs/reliability.md that goes by the published figures of ``benchmarks.speed``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness.page import verdict
from benchmarks.harness.provenance import ROOT
from benchmarks.harness.record import FOLDER, read
from training.report.markdown import fill

Records = Sequence[Mapping[str, Any]]
PAGE = ROOT / "docs" / "reliability.md"


def with_figures(page: str) -> str:
    """Return docs/reliability.md with its sentence made anew."""
    return fill(page, "bench", {"overload": overload_figures(read(FOLDER))})


def value(record: Mapping[str, Any]) -> str:
    """Return a figure with its range."""
    return f"{record['value']:.3g} ({record['low']:.3g} to {record['high']:.3g})"


def overload_figures(records: Records) -> str:
    """Return the verdict at twice the capacity and its figures, setting by setting."""
    figures = {r["name"].removeprefix("overload: "): r for r in records if r["name"].startswith("overload: ")}
    settings = [name.removeprefix("goodput, ") for name in figures if name.startswith("goodput, ")]
    if not settings:
        return "not measured by this protocol yet"
    texts = [
        f"{setting}: {value(figures[f'goodput, {setting}'])} of the capacity answered, 99th percentile "
        f"{value(figures[f'99th percentile of the answered, {setting}'])} times the time to empty a full queue, "
        f"refusals' 95th percentile {value(figures[f'95th percentile of the refusals, {setting}'])} ms"
        for setting in settings
    ]
    judged = [r for r in figures.values() if r["met"] is not None]
    kept = sum(r["met"] for r in judged)
    every = Counter(verdict(r) for r in judged)
    overall = "met" if kept == len(judged) else "**missed**"
    return (
        f"{overall}, {kept} of {len(judged)} by the medians; in every run {every['met']} met and "
        f"{every['missed']} missed, {every['open']} open. Medians of the runs: {'; '.join(texts)}"
    )
