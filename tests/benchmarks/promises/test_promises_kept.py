"""How often promises are kept, over fewer draws."""

from __future__ import annotations

import sys

import pytest

from benchmarks.promises import __main__ as promises


def test_promises(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(promises, "SYNTHETIC_ROWS", 400)
    monkeypatch.setattr(sys, "argv", ["promises", "simulate", "--models", "0", "--draws", "3"])
    promises.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| laplace |") for line in lines) == 3
