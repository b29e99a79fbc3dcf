"""The published pages of a synthetic study."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_study import empty_docs, write_study

from benchmarks.study.publish import publish


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a documentation folder that a synthetic study was published to; ``study`` is beside it."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder / "study")
    made = empty_docs(folder)
    publish(folder / "study", made)
    return made
