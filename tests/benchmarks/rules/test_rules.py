"""The scripts that check rules on synthetic models run, on fewer draws."""

from __future__ import annotations

import sys

import pytest

from benchmarks.rules import choices, needless_fits, quadrature, without_calibration
from benchmarks.rules.promises import __main__ as promises


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
