"""Searches in these tests are coarse: what they find is tested in ``tests/laplora/prior`` and ``predictive``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from laplora.predictive import gaussian, kinds
from laplora.prior import search


@pytest.fixture(scope="module", autouse=True)
def coarse_searches(request: pytest.FixtureRequest, sentiment_run: object) -> Iterator[None]:
    """Let searches have grids of 15 points, and answers of more than two classes 64 Sobol points.

    But in a module with ``FINE_SEARCHES``, and in the session's run, which is made before.
    """
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(request.module, "FINE_SEARCHES"):
            yield
            return
        patch.setattr(search, "PRECISION_GRID", 15)
        patch.setattr(kinds, "TEMPERATURE_GRID", 15)
        patch.setattr(gaussian, "SOBOL_POINTS", 64)
        yield
