"""The published comparison of structures: its records, table and plot; test_study measures one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic_study import TASKS, cells, empty_docs, page_of, write_study

from benchmarks.study.pages.approximation_plot import approximation_figure
from benchmarks.study.pages.approximation_table import CORRELATION_BAND, RATIO_BAND, approximation_table, variants_of
from benchmarks.study.publish import publish, publish_variants
from benchmarks.study.results.records import read_records
from laplora.errors import DataError

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


def frame(*compared: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([record for one in compared for record in one])


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Return a documentation folder with the pages of one task and seed."""
    folder = empty_docs(tmp_path)
    write_study(tmp_path / "study", TASKS[:1], (0,))
    publish(tmp_path / "study", folder)
    return folder


def test_a_published_seed_is_replaced_and_others_stay(docs: Path) -> None:
    assert "Nothing is published of it yet" in page_of(docs)
    for one in (comparison("sst2", 1), comparison("boolq", 0), comparison("sst2", 1, shift=0.5), comparison("sst2", 0)):
        publish_variants(one, docs)
    records = read_records(docs / "results")["variants"]
    assert list(dict.fromkeys((r["task"], r["seed"]) for r in records)) == [("boolq", 0), ("sst2", 0), ("sst2", 1)]
    assert len(records) == 3 * len(comparison("sst2", 0))
    ratios = {r["seed"]: r["ratio"] for r in records if r["task"] == "sst2" and r["structure"] == "diagonal"}
    assert ratios == {0: 1.9, 1: 2.4}
    page = page_of(docs)
    publish(docs.parent / "study", docs)
    assert page_of(docs) == page, "the study leaves the comparison in place"


def test_what_is_no_comparison_is_refused(docs: Path) -> None:
    result = comparison("sst2", 0)
    del result[0]["ratio"]
    with pytest.raises(DataError, match="variants, record 0: missing or unknown: ratio"):
        publish_variants(result, docs)


def test_the_table_has_means_over_seeds_and_names_the_whole_width() -> None:
    table = approximation_table(frame(comparison("sst2", 0), comparison("sst2", 1, shift=0.1)))
    rows = {tuple(line[:3]): line[3:] for line in cells(table)[1:]}
    assert rows["EKFAC", "full", "-"][:2] == ["0.967", "1.54"]
    assert rows["EKFAC", "10", "-"] == ["0.965", "1.54", "0.320", "1.60", "12.3", "1.2"]
    assert rows["exact GGN, per block", "-", "-"][2] == "-"
    assert rows["⚠ exact GGN, last 4 layers", "-", "-"][:2] == ["0.530", "0.160"]
    assert len(rows) == len(comparison("sst2", 0))


def test_the_text_tells_what_was_compared() -> None:
    records = frame(comparison("sst2", 0), comparison("sst2", 1), comparison("boolq", 0, shift=1))
    text = approximation_table(records)
    assert f"at least {CORRELATION_BAND[0]:g}, a ratio from {RATIO_BAND[0]:g} to {RATIO_BAND[1]:g}" in text
    seeds = "31.6 (seed 0), 32.6 (seed 1)"
    assert f"**sst2**: 200 test rows, prior precision {seeds}, adapter {ADAPTER / 1e6:.2f} MB" in text
    # joint core at rank 10 is the smallest within both bands; a shift of 1 leaves none.
    assert "joint core, rank 10, joint rank 50, 3.50 × the adapter" in text
    assert "none but the exact posterior itself" in text
    warning = text[text.index("⚠ marks") : text.index("variances.\n\n!")]
    assert "correlations of -0.08 to 0.53" in warning
    assert "ratios of 0.00400 to 1.11" in warning


def test_the_plot_has_every_variant_its_rank_and_the_bands() -> None:
    records = frame(comparison("sst2", 0))
    figure, points = approximation_figure(records), variants_of(records, "sst2")
    for axes in figure.axes:
        drawn = [x for line in axes.lines if line.get_marker() not in ("", "None") for x in line.get_xdata()]
        assert sorted(drawn) == pytest.approx(sorted(points["size"]))
        labels = [t.get_text() for t in axes.texts]
        assert sorted(labels) == sorted("/".join(rank for rank in ranks if rank != "-") for ranks in points.ranks)
        low, high = axes.get_ylim()
        assert all(low <= y <= high for line in axes.lines for y in line.get_ydata())
    band = figure.axes[1].patches[0].get_extents().transformed(figure.axes[1].transData.inverted())
    assert (band.y0, band.y1) == pytest.approx(RATIO_BAND)
    names = {text.get_text().removeprefix("⚠ ") for text in figure.legends[0].get_texts()}
    assert names == {*points.series, "target band"}
