"""The dependency rules of ``pyproject.toml``: the library knows neither jobs nor HTTP, and those never meet."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]


def test_the_import_contracts_hold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_the_contracts_say_what_the_design_says() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    by_type = {c["type"]: c for c in settings["contracts"]}
    assert set(by_type["independence"]["modules"]) == {"service", "training"}
    library = next(c for c in settings["contracts"] if c.get("source_modules") == ["laplora"])
    assert {"service", "training", "fastapi"} <= set(library["forbidden_modules"])


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("laplora.predictor", ("fastapi", "uvicorn", "datasets", "matplotlib", "rich", "yaml")),
        ("laplora.prior.validation", ("transformers", "peft", "pydantic", "safetensors")),
        ("training.__main__", ("transformers", "peft", "datasets", "matplotlib")),
    ],
)
def test_a_module_loads_no_more_than_it_needs(module: str, absent: tuple[str, ...]) -> None:
    """What import-linter sees in the source, seen once more in a running process."""
    program = f"import sys, {module}; found = set({absent!r}) & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
