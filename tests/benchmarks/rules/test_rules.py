"""The scripts that check rules on synthetic models run: they set thresholds that the library keeps to itself."""

from __future__ import annotations

import sys

import pytest

from benchmarks.rules import choices, needless_fits, quadrature


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m benchmarks.rules"])


def test_choices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("_NESTED_GUARD", "_CHEAPER", "_LAPLACE"):
        monkeypatch.setattr(choices.rule, name, getattr(choices.rule, name))
    monkeypatch.setattr(choices, "TRIALS", 2)
    choices.main()
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 * len(choices.MODELS) * (1 + len(choices.RULES))


def test_needless_fits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(needless_fits.calibration, "_PRIOR_ROWS", needless_fits.calibration._PRIOR_ROWS)
    monkeypatch.setattr(needless_fits.rule, "_COST", needless_fits.rule._COST)
    monkeypatch.setattr(needless_fits, "SPLITS", 2)
    needless_fits.main()
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 + len(needless_fits.MODELS) * len(needless_fits.VARIANTS)


def test_quadrature(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(quadrature, "VARIANCES", quadrature.VARIANCES[:1])
    quadrature.main()
    assert float(capsys.readouterr().out.split("|")[-2]) < 1e-6
