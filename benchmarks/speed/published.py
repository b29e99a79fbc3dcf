"""Sentences of other pages that go by the published figures of ``benchmarks.speed``; they are written, not typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.page import verdict
from benchmarks.harness.provenance import ROOT
from benchmarks.harness.record import FOLDER, read
from training.report.markdown import fill

Records = Sequence[Mapping[str, Any]]


def write_pages(root: Path = ROOT, folder: Path = FOLDER) -> None:
    """Write every such sentence anew."""
    for path, text in pages(root, read(folder)).items():
        path.write_text(text, encoding="utf-8")


def pages(root: Path, records: Records) -> dict[Path, str]:
    """Return the pages with their sentences, by path."""
    return {
        root / name: fill(
            (root / name).read_text(encoding="utf-8"),
            "bench",
            {place: sentence(records) for place, sentence in places.items()},
        )
        for name, places in PLACES.items()
    }


def named(records: Records, name: str) -> Mapping[str, Any] | None:
    """Return the record whose name is this or begins with it; of several machines', the last that was measured."""
    found = [r for r in records if r["name"].startswith(name)]
    return max(found, key=lambda r: r["measured"]["date"]) if found else None


def value(record: Mapping[str, Any]) -> str:
    """Return a figure with its range."""
    return f"{record['value']:.3g} ({record['low']:.3g} to {record['high']:.3g})"


def fast_costs(records: Records) -> str:
    """Return what an answer of mode fast costs as served, with no number where none is published."""
    many, exact, alone, handed = (
        named(records, f"fast: {name}")
        for name in ("fast as served, 32", "laplace as served, 32", "fast as served, one", "handed over")
    )
    if many is None or exact is None or alone is None or handed is None:
        return "between one MAP answer and one Laplace answer, depending on how many rows it defers"
    return (
        f"{many['value']:.3g} MAP answers as served to 32 clients at once, where a Laplace answer costs "
        f"{exact['value']:.3g}, and {alone['value']:.3g} to one client alone (SST-2, "
        f"{100 * handed['value']:.0f} % of the rows deferred)"
    )


def overload_figures(records: Records) -> str:
    """Return the verdict at twice the capacity and its figures, setting by setting."""
    goodputs = [r for r in records if r["name"].startswith("overload: goodput, ")]
    if not goodputs:
        return "not measured by this protocol yet"
    judged = [r for r in records if r["name"].startswith("overload: ") and r["met"] is not None]
    kept = sum(r["met"] for r in judged)
    texts = []
    for goodput in goodputs:
        setting = goodput["name"].removeprefix("overload: goodput, ")
        waited, refused = (
            next(r for r in records if r["name"] == f"overload: {what}, {setting}")
            for what in ("99th percentile of the answered", "95th percentile of the refusals")
        )
        texts.append(
            f"{setting}: {value(goodput)} of the capacity answered, 99th percentile {value(waited)} times the time to "
            f"empty a full queue, refusals' 95th percentile {value(refused)} ms"
        )
    every = Counter(verdict(r) for r in judged)
    overall = "met" if kept == len(judged) else "**missed**"
    return (
        f"{overall}, {kept} of {len(judged)} by the medians; in every run {every['met']} met and "
        f"{every['missed']} missed, {every['open']} open. Medians of the runs: {'; '.join(texts)}"
    )


#: By page, the sentences that stand between its markers.
PLACES: Mapping[str, Mapping[str, Callable[[Records], str]]] = {
    "docs/evidence.md": {"fast": fast_costs},
    "docs/reliability.md": {"overload": overload_figures},
}
