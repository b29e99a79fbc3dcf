"""The two distributions as an index has them, and what a module imports as it is loaded, also by way of others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from server_process import ROOT, fake_artifacts, fake_server, is_ready, until

INSTALL = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
BUILD = ["-m", "build", "--quiet", "--no-isolation"]


def installed(project: Path, folder: Path, *kinds: str) -> Path:
    """Return the folder that a project's wheel was installed into; without kinds it is built from the sdist."""
    built = folder.parent / "dist"
    subprocess.run([sys.executable, *BUILD, *kinds, "--outdir", str(built), str(project)], check=True)
    (wheel,) = built.glob("*.whl")
    metadata = [email_of(wheel)] + [email_of(sdist) for sdist in built.glob("*.tar.gz")]
    assert len(metadata) == (1 if kinds else 2)
    for email in metadata:
        # What an index refuses, or shows as an empty page.
        found = Metadata.from_email(email, validate=True)
        assert found.description
        assert found.description_content_type == "text/markdown"
    subprocess.run([sys.executable, *INSTALL, "--target", str(folder), str(wheel)], check=True)
    return folder


def email_of(distribution: Path) -> bytes:
    """Return the metadata of a wheel or an sdist."""
    if distribution.suffix == ".whl":
        with zipfile.ZipFile(distribution) as archive:
            return archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))
    with tarfile.open(distribution) as archive:
        member = archive.extractfile(
            next(name for name in archive.getnames() if name.count("/") == 1 and name.endswith("/PKG-INFO"))
        )
        assert member is not None
        return member.read()


def checkout(folder: Path, *names: str) -> Path:
    """Return a folder with these files of the project, so that the build leaves nothing in the real one."""
    folder.mkdir()
    left = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=left)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(program: str, packages: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that finds these packages first, and this project nowhere else."""
    # The checkout is installed for editing: its finder must not answer for what the wheel left out.
    hidden = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__ + repr(f)]\n"
        f"sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]\n"
    )
    command = [sys.executable, "-c", hidden + program, *arguments]
    variables = os.environ | {"PYTHONPATH": str(packages)}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``pip install`` of the distribution puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    names = ("pyproject.toml", "README.md", "LICENSE", "laplora", "service", "training")
    return installed(checkout(folder / "checkout", *names), folder / "packages")


def test_the_wheel_has_all_files_of_its_packages_and_its_command_runs(wheel: Path, tmp_path: Path) -> None:
    for package in ("laplora", "service", "training"):
        command = ["git", "ls-files", package]
        tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        assert [name for name in tracked if not (wheel / name).is_file() and not name.endswith(".md")] == []
    program = "import sys; from laplora.commands.app import main; sys.exit(main(sys.argv[1:]))"
    create = ("keys", "create", "--file", "keys.json", "--id", "a", "--scopes", "predict")
    finished = run(program, wheel, *create, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "keys.json").is_file()
    finished = run(program, wheel, "serve", str(tmp_path), cwd=tmp_path)  # no artifact: the server itself says so
    assert finished.returncode == 2, finished.stderr
    assert "no artifact at" in finished.stderr + finished.stdout


def test_a_script_beside_an_editable_clone_imports_the_package_and_not_the_clones_folder(tmp_path: Path) -> None:
    clone = checkout(tmp_path / "laplora", "pyproject.toml", "README.md", "LICENSE", "laplora")
    program = "from setuptools.build_meta import build_editable; print(build_editable('.'))"
    built = subprocess.run([sys.executable, "-c", program], cwd=clone, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(clone / built.stdout.split()[-1]) as wheel:
        (path,) = (name for name in wheel.namelist() if name.startswith("__editable__"))
        assert wheel.read(path).decode().strip() == str(clone)


def test_the_client_alone_asks_a_server_without_torch(tmp_path: Path) -> None:
    packages = installed(
        checkout(tmp_path / "checkout", "client", "laplora") / "client", tmp_path / "packages", "--wheel"
    )
    assert not (packages / "laplora").exists()
    program = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "laplora", "service")))  # importing one is an error
from laplora_client import Client, RequestRefusedError
from laplora_client.errors import LaploraError
with Client(sys.argv[1]) as client:
    print(client.predict([{"text": "row 4321"}])[0].probs["negative"])
    try:
        client.predict([{"nothing": "x"}])
    except RequestRefusedError as error:
        assert isinstance(error, LaploraError)
        print(error.code)
"""
    with fake_server(fake_artifacts(tmp_path / "served")) as process, process.client() as client:
        until(lambda: is_ready(client))
        finished = run(program, packages, str(client.base_url), cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    probability, code = finished.stdout.split()
    assert (round(float(probability) * 100_000), code) == (4321, "invalid_input")


def test_both_distributions_have_one_version() -> None:
    files = [ROOT / name / "pyproject.toml" for name in (".", "client")]
    whole, client = (tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in files)
    assert whole["version"] == client["version"]
    pydantic = {one for one in whole["dependencies"] if one.startswith("pydantic")}
    assert set(client["dependencies"]) == {*whole["optional-dependencies"]["client"]} | pydantic


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("laplora", ("torch", "transformers", "peft", "numpy", "pydantic", "scipy")),
        ("laplora.client", ("torch", "transformers", "service")),
        ("laplora.predictor", ("fastapi", "uvicorn", "datasets", "matplotlib", "rich", "yaml", "scipy.optimize")),
        ("laplora.commands.app", ("torch", "transformers", "fastapi", "httpx", "datasets")),
        ("laplora.prior.search", ("transformers", "peft", "pydantic", "safetensors")),
        ("training.__main__", ("transformers", "peft", "datasets", "matplotlib")),
        ("service.app", ("torch", "scipy", "numpy", "transformers")),
    ],
)
def test_a_module_loads_no_more_than_it_needs(module: str, absent: tuple[str, ...]) -> None:
    """What import-linter sees in the source, seen once more in a running process."""
    program = f"import sys, {module}; found = set({absent!r}) & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
