"""The bill of materials of an image, written for a small environment and this machine's own system."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from laplora.models.offline import OFFLINE_ENCODERS, OFFLINE_MODELS

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "docker" / "bill_of_materials.py"
#: What three packages say of their licence: in the field of today, in the older one, nowhere.
PACKAGES = {
    "of-today": "License-Expression: MIT OR Apache-2.0",
    "of_old": "License: 3-Clause BSD License",
    "silent": "",
}

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program wrote for an environment of three packages."""
    folder = tmp_path_factory.mktemp("bill")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv" / "lib").glob("python3*/site-packages")
    for name, line in PACKAGES.items():
        information = site / f"{name.replace('-', '_')}-1.5.dist-info"
        information.mkdir()
        text = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.5\n{line}\n"
        (information / "METADATA").write_text(text, encoding="utf-8")
    python = folder / "venv" / "bin" / "python"
    command = [sys.executable, PROGRAM, "--image", "laplora-service", "--python", python, "--folder", folder / "bom"]
    subprocess.run(command, check=True)
    return folder / "bom"


@pytest.fixture(scope="module")
def bill(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "bom.cdx.json").read_text(encoding="utf-8"))


def test_it_has_every_package_of_the_environment_and_its_licence(bill: dict[str, Any], folder: Path) -> None:
    """Its program has checked it against CycloneDX's schema; see ``main``."""
    image = bill["metadata"]["component"]
    assert (bill["bomFormat"], image["name"], image["type"]) == ("CycloneDX", "laplora-service", "container")
    python = {c["name"]: c for c in bill["components"] if c.get("purl", "").startswith("pkg:pypi/")}
    assert set(python) == set(PACKAGES)
    assert {component["version"] for component in python.values()} == {"1.5"}
    assert python["of-today"]["licenses"] == [{"acknowledgement": "declared", "expression": "MIT OR Apache-2.0"}]
    assert python["of_old"]["licenses"] == [{"license": {"name": "3-Clause BSD License"}}]
    assert "licenses" not in python["silent"]
    with (folder / "licences.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["name"], row["version"]) for row in rows) == sorted(
        (component["name"], component["version"]) for component in bill["components"]
    )
    stated = {row["name"]: row["licences"] for row in rows if row["kind"] == "pypi"}
    assert stated == {"of-today": "MIT OR Apache-2.0", "of_old": "3-Clause BSD License", "silent": "not stated"}
    assert all(row["licences"] for row in rows)


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="not a Debian")
def test_it_has_every_package_of_the_system(bill: dict[str, Any]) -> None:
    listed = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${Version}\n"], check=True, capture_output=True, text=True
    )
    debian = [c for c in bill["components"] if c.get("purl", "").startswith("pkg:deb/debian/")]
    assert sorted(f"{c['name']} {c['version']}" for c in debian) == sorted(listed.stdout.splitlines())
    (bash,) = [component for component in debian if component["name"] == "bash"]
    assert {"license": {"name": "GPL-3+"}} in bash["licenses"]
    assert "distro=debian-" in bash["purl"]
    interpreters = [c for c in bill["components"] if c.get("purl", "").startswith("pkg:generic/python")]
    assert len(interpreters) <= 1, "none where a package of Debian has brought it"


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "all-minilm-l6-v2"])
def test_it_has_what_is_baked_in_under_its_makers_licence(name: str) -> None:
    made = runpy.run_path(str(PROGRAM))["base_model"](sys.executable, name)
    known = (OFFLINE_MODELS | OFFLINE_ENCODERS)[name]
    assert (made.name, made.version, made.type.value) == (name, known.version, "machine-learning-model")
    assert [licence.id for licence in made.licenses] == [known.licence] == ["Apache-2.0"]
