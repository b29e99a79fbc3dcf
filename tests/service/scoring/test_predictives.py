"""Every predictive of a tiny artifact over HTTP: what the library says, and what /evaluate measures of it."""

from __future__ import annotations

import asyncio

import pytest
from serving import settings, started
from tiny_runs import FinishedRun

from laplora.predictive.kinds import PREDICTIVES
from laplora.predictor import Predictor
from service.app import create_app

pytestmark = pytest.mark.anyio

TEXTS = ["The film was superb.", "dull", "The plot was weak, and I say so after seeing it twice.", "qzx ## of"]
#: Float32, in batches of another shape.
TOLERANCE = 1e-4


async def test_clients_at_once_get_what_the_library_says_of_the_predictive_they_ask_for_and_evaluate_measures_each(
    mixture_run: FinishedRun, mixture_predictor: Predictor
) -> None:
    rows = [mixture_predictor.encode({"text": t}, truncate=True) for t in TEXTS]
    said = mixture_predictor.artifact.manifest.recommended
    names = [*PREDICTIVES] * 4
    labelled = [{"text": t, "label": "positive"} for t in TEXTS]
    own = settings(artifact=mixture_run.artifact.name, artifacts_root=mixture_run.artifact.parent, device="cpu")
    async with started(create_app(own)) as client:
        inputs = [{"text": t} for t in TEXTS]
        bodies = [{"inputs": inputs, "options": {"predictive": name}} for name in names]
        answers = await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))
        default = (await client.post("/predict", json={"inputs": inputs})).json()
        evaluated = await client.post("/evaluate", json={"inputs": labelled, "options": {"resamples": 20}})
    recommended = {"recommended": said.predictive, "reason": said.reason}
    assert default["predictive"] == {"name": said.predictive, **recommended}
    methods = evaluated.json()["methods"]
    assert set(methods) == set(PREDICTIVES)
    for name, answer in zip(names, answers, strict=True):
        body, expected = answer.json(), mixture_predictor.predict(rows, name)
        assert body["predictive"] == {"name": name, **recommended}
        for got, want in zip(body["predictions"], expected, strict=True):
            for probs in ("probs", "map_probs"):
                assert list(got[probs].values()) == pytest.approx(getattr(want, probs), abs=TOLERANCE)
            for part in ("prediction_set", "flags", "decision"):
                assert got[part] == getattr(want, part)
            assert (got["logit_variance"] is None) == (not PREDICTIVES[name].covariance)
            assert (got["uncertainty"] is None) == (want.epistemic is None)
        right = [p["label"] == "positive" for p in body["predictions"]]
        assert methods[name]["accuracy"] == pytest.approx(sum(right) / 4)
