"""Searches in these tests are coarse: what they find is tested in ``tests/laplora/prior`` and ``predictive``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import laplora
from laplora.predictive import gaussian
from laplora.prior import search
from laplora.prompts.templates import TEMPLATES


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
        patch.setattr(gaussian, "SOBOL_POINTS", 64)
        yield


@pytest.fixture(scope="session")
def rows(sentiment_run: Any) -> dict[str, Any]:
    """Rows of the session's run by split, as a user has them."""
    from test_entry import rows_of  # only once pytest is ready to rewrite its assertions

    return rows_of(sentiment_run)


@pytest.fixture(scope="session")
def classifier(sentiment_run: Any) -> laplora.Classifier:
    """The run's model, as a user of transformers and peft has it."""
    from test_entry import load

    labels, template = ["negative", "positive"], TEMPLATES["sentiment"].cutting_texts()
    return laplora.Classifier(*load(sentiment_run), labels=labels, template=template, max_tokens=64)


@pytest.fixture(scope="session")
def conditioned(classifier: laplora.Classifier, rows: dict[str, Any]) -> laplora.CalibratedPosterior:
    """A fit of it with every default, conditioned on its calibration rows."""
    return laplora.fit(classifier, rows["train"], rows["calibration"], progress=False)
