"""The scripts that check rules on synthetic models run, on fewer draws."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.evidence.outputs import Outputs, Rows
from benchmarks.evidence.plan import Training, Unit
from benchmarks.rules import choices, needless_fits, quadrature, without_calibration
from benchmarks.rules.promises import __main__ as promises
from benchmarks.rules.promises.conditioned import study_table
from benchmarks.rules.promises.deals import METHODS, deal


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m benchmarks.rules"])


def test_choices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(choices, "TRIALS", 2)
    choices.main()
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 * len(choices.MODELS) * (1 + len(choices.RULES))


def test_needless_fits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(needless_fits, "SPLITS", 2)
    needless_fits.main()
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 + len(needless_fits.MODELS) * len(needless_fits.VARIANTS)


def test_quadrature(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(quadrature, "VARIANCES", quadrature.VARIANCES[:1])
    quadrature.main()
    assert float(capsys.readouterr().out.split("|")[-2]) < 1e-6


def test_promises(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(promises, "SYNTHETIC_ROWS", 400)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "simulate", "--models", "0", "--draws", "3"])
    promises.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| laplace | cross-fitted |") for line in lines) == 3


def test_without_calibration(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(without_calibration, "SIZES", (40,))
    monkeypatch.setattr(without_calibration, "STEPS", {"early": 20})
    monkeypatch.setattr(without_calibration, "NEW", 50)
    monkeypatch.setattr("sys.argv", ["without_calibration", "--seeds", "1"])
    without_calibration.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(without_calibration.METHODS)
    rows = [[float(number) for number in line.replace("(", "").replace(")", "").split()[-8:]] for line in lines[1:]]
    assert len({row[0] for row in rows}) == 1  # MAP is the same whatever calibrates
    assert all(0 <= row[6] <= 1 for row in rows)


def test_conditioned_rows_are_dealt_with_the_others() -> None:
    """Labels follow a state that the logits do not know of: they can only be learned from a draw's labels."""
    draw = torch.Generator().manual_seed(1)

    def rows(count: int) -> Rows:
        states = torch.randn(count, 4, generator=draw, dtype=torch.float64)
        logits = torch.randn(count, 2, generator=draw, dtype=torch.float64)
        return Rows(logits, torch.ones(count, 2, dtype=torch.bool), (states[:, 0] > 0).long(), states)

    unit = Unit(Training("sst2", 450, 0), "long")
    table = study_table(Outputs(unit, rows(30), rows(150), rows(300), torch.arange(50)[None]))
    kept = {name: deal(table, fit, calibration_rows=80, draws=2, risk=0.1, level=0.9) for name, fit in METHODS.items()}
    tempered, conditioned = (kept["cross-fitted"]["empirical", name] for name in ("temperature", "conditioned"))
    assert float(conditioned.accepted.min()) > 0.5 > float(tempered.accepted.max())
    assert float(conditioned.size.mean()) < float(tempered.size.mean())
    # Its own labels have moved the rows that one fit sets the sets on.
    assert float(kept["one fit"]["empirical", "conditioned"].size.mean()) < float(conditioned.size.mean())
