"""``import laplora``: what it offers, how little it does, and what an error says to install."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
from server_process import ROOT

import laplora
from laplora import errors
from laplora.errors import install


def test_every_public_name_resolves_and_has_one_home() -> None:
    lazy = [name for names in laplora._HOMES.values() for name in names]
    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and v.__module__ == errors.__name__}
    assert len(laplora.__all__) == len(lazy) + len(defined) + 1
    assert set(laplora.__all__) == {*lazy, *defined, "__version__"}
    assert set(laplora.__all__) <= set(dir(laplora))
    for module, names in laplora._HOMES.items():
        for name in names:
            assert getattr(getattr(laplora, name), "__module__", f"laplora.{module}") == f"laplora.{module}"
    assert all(issubclass(getattr(laplora, name), (laplora.LaploraError, laplora.LaploraWarning)) for name in defined)
    with pytest.raises(AttributeError, match="no attribute 'Predictr'"):
        _ = laplora.Predictr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert laplora.__version__ == project["version"]


SOURCES = [path for room in ("laplora", "service", "training") for path in (ROOT / room).rglob("*.py")]


def test_every_extra_that_is_named_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set()
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"""(?:install|needs)\(["'](\w+)["'][,)]""", text))
        # Said in one way alone: a name of its own here could be no extra, or work in a checkout only.
        if path.name != "errors.py":
            assert not re.search(r"pip install '(\.|laplora)\[", re.sub(r"(?s)\"\"\".*?\"\"\"", "", text)), path
    assert {"service", "training", "report", "telemetry", "postgres", "s3"} <= named
    assert named <= set(project["optional-dependencies"])


@pytest.mark.process
def test_pip_keeps_the_laplora_that_is_installed() -> None:
    """Without an index: a laplora from elsewhere, or a checkout that has to be the working folder, would fail here."""
    words = install("telemetry").replace("'", "").split()
    command = [sys.executable, "-m", *words, "--dry-run", "--no-index", "--no-input", "--disable-pip-version-check"]
    finished = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "Requirement already satisfied: laplora[telemetry]" in finished.stdout
    assert "does not provide the extra" not in finished.stderr


def test_the_face_of_scikit_learn_says_what_it_needs() -> None:
    program = "import sys; sys.modules['sklearn'] = None; import laplora.sklearn"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "pip install 'laplora[sklearn]'" in finished.stderr
