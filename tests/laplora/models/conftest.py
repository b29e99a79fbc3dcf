"""A cache that belongs to one test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The path of a cache folder that is not there yet."""
    return tmp_path / "cache"
