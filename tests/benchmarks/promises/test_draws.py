"""Answers that the experts' benchmark keeps, drawn: figures by hand where every draw is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.experts.cells import Cell
from benchmarks.promises.__main__ import results_of
from benchmarks.promises.page import render
from laplora.files.atomic import write_tensors


def test_draws_of_sure_rows_all_right_but_the_unsure(tmp_path: Path) -> None:
    """Half of the rows are sure and right, half are a toss-up and wrong: every rule accepts the sure ones."""
    sure = torch.arange(400) % 2 == 0
    spread = torch.rand(400, generator=torch.Generator().manual_seed(0)).double()
    right = torch.where(sure, 0.999 + 0.0009 * spread, 0.45 + 0.04 * spread)
    probs = torch.stack([right, 1 - right], 1)
    tensors = {"held_out": probs.log(), "test": probs.log(), "labels": torch.zeros(400).long()}
    for method in ("temperature", "map"):
        path = Cell("sst2", 0, tmp_path).folder / "methods" / f"{method}.safetensors"
        write_tensors(path, tensors | {"test_labels": torch.zeros(400).long()}, {"seconds": "1"})
    results = results_of(("sst2",), tmp_path, 4)
    assert {(r["method"], r["rule"]) for r in results["figures"]} == {
        ("temperature", "empirical"),
        ("map", "empirical"),
        ("map", "upper_bound"),
    }
    for record in results["figures"]:
        # All sure rows, and as many wrong ones as the target lets in.
        assert record["accepted"] - record["wrong"] == pytest.approx(0.5, abs=0.05)
        assert record["error"] == pytest.approx(record["wrong"] / record["accepted"], abs=0.01)
        assert record["error"] < record["target"] + 0.02
        assert record["empty"] == 0
    (of_temperature, _) = results["transfer"]
    assert (of_temperature["labelled"], of_temperature["test"]) == (0.5, 0.5)
    assert of_temperature["coverage"] == pytest.approx(0.9, abs=0.005)
    assert "| sst2 | 50.0 | 50.0 | 90.2 |" in render(results)
