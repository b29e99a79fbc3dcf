"""The recorded comparison: its tables are what its numbers give."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers.tables import render

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"


def test_tables_are_of_the_recorded_numbers() -> None:
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    assert {"bayesian_lora", "brier"} <= set(results) <= {"laplace", "bayesian_lora", "brier"}
    assert render(results) == (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
    for part in results.values():
        assert set(part["measured"]) == {"date", "command", "hardware", "versions"}
