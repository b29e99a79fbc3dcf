"""What tests of fits share: served answers beside fitted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import laplora
from laplora.predictor import Predictor


def assert_served_as_fitted(
    posterior: laplora.CalibratedPosterior,
    folder: Path,
    inputs: Sequence[Mapping[str, Any]],
    names: Sequence[str] = ("laplace",),
) -> Predictor:
    """Load an artifact, which replays its golden answers, and compare its answers with the posterior's."""
    predictor = Predictor.load(folder, device="cpu")
    for name in names:
        for one, mine in zip(inputs, posterior.predict(inputs, name, batch_size=4), strict=True):
            (served,) = predictor.predict([predictor.encode(one, truncate=True)], name)
            assert served.probs == pytest.approx(mine.probs, abs=1e-5)
            assert served.map_probs == pytest.approx(mine.map_probs, abs=1e-5)
            assert (served.logit_variance is None) == (mine.logit_variance is None)
            if mine.logit_variance is not None:
                assert min(mine.logit_variance) > 0
                assert served.logit_variance == pytest.approx(mine.logit_variance, rel=1e-3)
            assert served.label_mass == pytest.approx(mine.label_mass, rel=1e-3, abs=1e-12)
            assert (served.labels_present, served.prediction_set) == (mine.labels_present, mine.prediction_set)
            assert (served.decision, served.flags) == (mine.decision, mine.flags)
    return predictor
