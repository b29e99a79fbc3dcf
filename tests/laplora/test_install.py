"""What an error says to install: an extra that there is, by one command that works beside a wheel and in a checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
from server_process import ROOT

from laplora.errors import install

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


@pytest.mark.parametrize("package", ["sklearn", "mlflow"])
def test_a_face_says_what_it_needs(package: str) -> None:
    program = f"import sys; sys.modules['{package}'] = None; import laplora.{package}"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert f"pip install 'laplora[{package}]'" in finished.stderr
