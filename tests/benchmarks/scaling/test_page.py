"""The page is made of the figures that are committed, and engines are compared within a turn."""

from __future__ import annotations

import json

from benchmarks.scaling.__main__ import PAGE, RESULTS, render
from benchmarks.scaling.replicas import ENGINES, engines_table


def test_the_committed_page_is_made_of_the_committed_figures() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert render(text, json.loads(RESULTS.read_text(encoding="utf-8"))) == text


def test_engines_are_compared_within_a_turn() -> None:
    engine = {"cpu_ms_1": 100.0, "cpu_ms_4": 90.0, "alone_ms": 100.0, "goodput": 0.95, "refused": 0.5, "otherwise": 0.0}
    turns = [
        {
            name: {**engine, "rows_per_s_1": 10.0 * factor * (1 + turn), "rows_per_s_4": 11.0 * factor}
            for name, factor in zip(ENGINES, (1, 1.9, 0.9, 1.8), strict=True)
        }
        for turn in range(3)
    ]
    assert "| Ray, 2 replicas | 36.0 (18.0 to 54.0) | 1.80 (1.80 to 1.80) |" in engines_table(turns)
