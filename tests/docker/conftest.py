"""What helm makes of the chart, and what Kubernetes' published schemas say of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import program

CHART = Path(__file__).resolve().parents[2] / "docker" / "kubernetes" / "laplora"

#: Documents by (kind, name).
Documents = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs helm with the chart as its last argument; ``values`` is a file's content."""
    path = program("helm")
    if path is None:
        pytest.skip("helm not installed: python .ci/install_helm.py")

    def run(*arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        command = [path, *arguments, str(CHART), *(("--values", "-") if values else ())]
        given = yaml.safe_dump(values) if values else None
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., Documents]:
    """Return the documents of a release ``laplora`` with these values."""

    def documents(values: dict[str, Any] | None = None, *arguments: str) -> Documents:
        done = helm("template", "laplora", *arguments, values=values)
        assert done.returncode == 0, done.stderr
        found = [document for document in yaml.safe_load_all(done.stdout) if document]
        named = {(document["kind"], document["metadata"]["name"]): document for document in found}
        assert len(named) == len(found)
        return named

    return documents
