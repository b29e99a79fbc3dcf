"""The recorded comparison: it is whole, of the present weights, and every table is what its numbers give."""

from __future__ import annotations

import json

from benchmarks.harness import provenance
from benchmarks.peers import __main__ as job
from benchmarks.peers.tables import page_tables
from training.report.markdown import fill

FOLDER = job.FOLDER
RESULTS = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_tables_are_of_the_recorded_numbers() -> None:
    assert set(RESULTS) == {"laplace", "bayesian_lora"}
    page = job.PAGE.read_text(encoding="utf-8")
    assert fill(page, "peers", page_tables(RESULTS)) == page, "run python -m benchmarks.peers --tables"
    for part in RESULTS.values():
        assert set(part["measured"]) == {"date", "commit", "adapter", "command", "hardware", "versions"}
        assert part["measured"]["adapter"] == provenance.adapter(), "run python -m benchmarks.peers"


def test_the_artifact_agreed_where_the_posterior_is_the_same() -> None:
    artifact = RESULTS["laplace"]["artifact"]
    for structure in ("diagonal", "kfac_reduce", "exact, one block"):
        # transformers takes norms in float32 whatever the model's type is: relative 6e-8 a norm, 61 norms.
        assert artifact[structure]["covariance"] < 1e-6, structure
