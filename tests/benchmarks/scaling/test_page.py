"""The page is made of the figures that are committed, and says what has none yet."""

from __future__ import annotations

from typing import Any

from benchmarks.scaling import page
from benchmarks.scaling.replicas import ENGINES, engines_table

SEEN = {
    "load": 0.5,
    "seed": 0,
    "offered_per_s": 5,
    "answered_per_s": 4.9,
    "latencies_s": [0.2, 0.3, 0.4],
    "refused": 0.25,
}
AGAINST: dict[str, Any] = {
    "map": {
        "device": {"base_s": 0.05, "token_s": 0.0004},
        "host": {"request_s": 0.002, "row_s": 0.0002, "refusal_s": 0.001},
        "capacity_per_s": {"server": 40.0, "simulation": 42.0},
        "server": [SEEN],
        "simulation": [{**SEEN, "answered_per_s": rate, "seed": seed} for seed, rate in enumerate((4.8, 4.7, 5.1))],
    }
}
AGAINST["laplace"] = AGAINST["map"]
ENGINE = {"cpu_ms_1": 100.0, "cpu_ms_4": 90.0, "alone_ms": 100.0, "goodput": 0.95, "refused": 0.5, "otherwise": 0.0}


def test_the_committed_page_is_made_of_the_committed_figures() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.render(text, page.committed()) == text


def test_what_was_measured_stands_on_the_page() -> None:
    measured = {"hardware": "two cores", "date": "today", "commit": "c", "artifact": "a", "versions": "v"}
    before = page.render(page.PAGE.read_text(encoding="utf-8"), {})
    assert before.count("not measured yet") == 7
    cells = page.simulated_cells(0.01)
    text = page.render(before, {"against": AGAINST, "cells": cells, "measured": {"against": measured}})
    assert text.count("not measured yet") == 2  # the engines, and when
    assert "two cores, today, commit c, a; v" in text
    assert "| map | 50.0 | 0.400 | 2.0 | 0.2 | 1.0 |" in text
    assert "| map | capacity | 40.0 | 42.0 |" in text
    assert "| map | 0.5 | 4.9 | 4.8 (4.7 to 5.1) | 0.20 | 0.20 (0.20 to 0.20) | 0.40 | 0.40 (0.40 to 0.40) |" in text
    # 0.7 of a core at 2 ms a request is 350 a second: an H100 at 0.7 of its load takes 54 (laplace, 2 classes).
    assert "| 1,000 |" in text


def test_what_a_predictive_costs_has_the_range_of_its_shapes() -> None:
    costs = page.map_answers()
    assert costs["MAP alone"] == (1.0, 1.0, 1.0)
    for name, (middle, least, most) in costs.items():
        assert least <= middle <= most, name
        assert name == "MAP alone" or most > 1.2, "none of them is free"


def test_engines_are_compared_within_a_turn() -> None:
    turns = [
        {
            name: {**ENGINE, "rows_per_s_1": 10.0 * factor * (1 + turn), "rows_per_s_4": 11.0 * factor}
            for name, factor in zip(ENGINES, (1, 1.9, 0.9, 1.8), strict=True)
        }
        for turn in range(3)
    ]
    table = engines_table(turns)
    assert "| Ray, 2 replicas | 36.0 (18.0 to 54.0) | 1.80 (1.80 to 1.80) |" in table
