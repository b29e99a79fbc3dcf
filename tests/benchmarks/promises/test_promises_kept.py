"""How often promises are kept, over fewer draws."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.evidence.outputs import Outputs, Rows
from benchmarks.evidence.plan import Training, Unit
from benchmarks.promises import __main__ as promises
from benchmarks.promises.conditioned import study_table
from benchmarks.promises.deals import deal


def test_promises(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(promises, "SYNTHETIC_ROWS", 400)
    monkeypatch.setattr(sys, "argv", ["promises", "simulate", "--models", "0", "--draws", "3"])
    promises.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| laplace |") for line in lines) == 3


def test_conditioned_rows_are_dealt_with_the_others() -> None:
    """Labels follow a state that the logits do not know of: they can only be learned from a draw's labels."""
    draw = torch.Generator().manual_seed(1)

    def rows(count: int) -> Rows:
        states = torch.randn(count, 4, generator=draw, dtype=torch.float64)
        logits = torch.randn(count, 2, generator=draw, dtype=torch.float64)
        return Rows(logits, torch.ones(count, 2, dtype=torch.bool), (states[:, 0] > 0).long(), states)

    unit = Unit(Training("sst2", 450, 0), "long")
    table = study_table(Outputs(unit, rows(30), rows(150), rows(300), torch.arange(50)[None]))
    kept = deal(table, calibration_rows=80, draws=2, risk=0.1, level=0.9)
    tempered, conditioned = (kept["empirical", name] for name in ("temperature", "conditioned"))
    assert float(conditioned.accepted.min()) > 0.5 > float(tempered.accepted.max())
    assert float(conditioned.size.mean()) < float(tempered.size.mean())
