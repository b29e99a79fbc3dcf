"""``import laplora``: what it offers, and how little it does."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import laplora
from laplora import errors

ROOT = Path(__file__).resolve().parents[2]


def test_every_public_name_resolves_and_has_one_home() -> None:
    lazy = [name for names in laplora._HOMES.values() for name in names]
    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and v.__module__ == errors.__name__}
    assert len(laplora.__all__) == len(lazy) + len(defined) + 1
    assert set(laplora.__all__) == {*lazy, *defined, "__version__"}
    assert set(laplora.__all__) <= set(dir(laplora))
    for module, names in laplora._HOMES.items():
        for name in names:
            assert getattr(getattr(laplora, name), "__module__", f"laplora.{module}") == f"laplora.{module}"
    assert all(issubclass(getattr(laplora, name), laplora.LaploraError) for name in defined)
    with pytest.raises(AttributeError, match="no attribute 'Predictr'"):
        _ = laplora.Predictr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert laplora.__version__ == project["version"]


def test_importing_loads_nothing_heavy() -> None:
    program = (
        "import sys; before = set(sys.modules); import laplora; new = set(sys.modules) - before;"
        "heavy = {m.partition('.')[0] for m in new} & {'torch', 'transformers', 'peft', 'numpy', 'pydantic', 'scipy'};"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
