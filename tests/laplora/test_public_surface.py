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


def test_every_public_name_resolves() -> None:
    for name in laplora.__all__:
        assert getattr(laplora, name) is not None
    assert set(laplora.__all__) <= set(dir(laplora))


def test_all_is_sorted_and_without_repetition() -> None:
    def order(name: str) -> tuple[int, str]:  # constants, classes, the rest: the order that ruff keeps
        return (0 if name.isupper() else 1 if name[0].isupper() else 2), name

    assert laplora.__all__ == sorted(set(laplora.__all__), key=order)


def test_lazy_names_are_public_and_have_one_home() -> None:
    lazy = [name for names in laplora._HOMES.values() for name in names]
    assert len(lazy) == len(set(lazy))
    assert set(laplora.__all__) == {*lazy, *errors.__all__, "__version__"}
    for module, names in laplora._HOMES.items():
        for name in names:
            home = getattr(getattr(laplora, name), "__module__", f"laplora.{module}")
            assert home == f"laplora.{module}"


def test_every_error_is_public_and_has_the_one_base() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(laplora, name), laplora.LaploraError)
    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and v.__module__ == errors.__name__}
    assert defined == set(errors.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Predictr'"):
        _ = laplora.Predictr


def test_the_version_is_the_package_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert laplora.__version__ == project["version"]


def test_importing_loads_nothing_heavy() -> None:
    program = (
        "import sys; before = set(sys.modules); import laplora; new = set(sys.modules) - before;"
        "heavy = {m.partition('.')[0] for m in new} & {'torch', 'transformers', 'peft', 'numpy', 'pydantic'};"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
