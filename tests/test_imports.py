"""What a module imports as it is loaded, also by way of others. ``make check`` holds the rules of the source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("laplora.predictor", ("fastapi", "uvicorn", "datasets", "matplotlib", "rich", "yaml")),
        ("laplora.commands.app", ("torch", "transformers", "fastapi", "httpx", "datasets")),
        ("laplora.prior.validation", ("transformers", "peft", "pydantic", "safetensors")),
        ("training.__main__", ("transformers", "peft", "datasets", "matplotlib")),
    ],
)
def test_a_module_loads_no_more_than_it_needs(module: str, absent: tuple[str, ...]) -> None:
    """What import-linter sees in the source, seen once more in a running process."""
    program = f"import sys, {module}; found = set({absent!r}) & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
