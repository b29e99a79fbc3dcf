"""Every predictive of a tiny artifact over HTTP, and questions with choices."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from serving import FakePredictor, serve, settings, started
from tiny_runs import FinishedRun

from laplora.answers.reasons import reason_for
from laplora.errors import NonFiniteError
from laplora.predictor import Predictor
from laplora.prompts.templates import TEMPLATES
from service.app import create_app

pytestmark = pytest.mark.anyio

TEXTS = ["The film was superb.", "dull", "The plot was weak, and I say so after seeing it twice.", "qzx ## of"]
#: Float32, in batches of another shape.
TOLERANCE = 1e-4


async def test_clients_at_once_get_what_the_library_says_of_the_predictive_they_ask_for_and_evaluate_measures_each(
    mixture_run: FinishedRun, mixture_predictor: Predictor
) -> None:
    rows = [mixture_predictor.encode({"text": t}, truncate=True) for t in TEXTS]
    manifest = mixture_predictor.artifact.manifest
    said = manifest.recommended
    names = [*manifest.servable] * 4
    labelled = [{"text": t, "label": "positive"} for t in TEXTS]
    own = settings(artifact=mixture_run.artifact.name, artifacts_root=mixture_run.artifact.parent, device="cpu")
    async with started(create_app(own)) as client:
        inputs = [{"text": t} for t in TEXTS]
        bodies = [{"inputs": inputs, "options": {"predictive": name, "detail": "full"}} for name in names]
        answers = await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))
        full = {"inputs": inputs, "options": {"detail": "full"}}
        default = (await client.post("/predict", json=full)).json()
        evaluated = await client.post("/evaluate", json={"inputs": labelled, "options": {"resamples": 20}})
    recommended = {"recommended": said.predictive}
    assert default["predictive"] == {"name": said.predictive, **recommended, "reason": said.reason}
    methods = evaluated.json()["methods"]
    assert {"map", "temperature", "conditioned", "pooled"} <= set(methods)
    for name, answer in zip(names, answers, strict=True):
        body, expected = answer.json(), mixture_predictor.predict(rows, name)
        assert body["predictive"] == {"name": name, **recommended, "reason": reason_for(manifest, name)}
        for got, want in zip(body["predictions"], expected, strict=True):
            for probs in ("probs", "map_probs"):
                assert got[probs] == pytest.approx(getattr(want, probs), abs=TOLERANCE)
            for part in ("prediction_set", "flags", "decision"):
                assert got[part] == getattr(want, part)
            assert (got["logit_variance"] is None) == (name in ("map", "temperature"))
            assert (got["uncertainty"] is None) == (want.epistemic is None)
        if name not in methods:
            continue
        right = [p["label"] == "positive" for p in body["predictions"]]
        assert methods[name]["accuracy"] == pytest.approx(sum(right) / 4)
        nll = -sum(math.log(p["probs"]["positive"]) for p in body["predictions"]) / 4
        assert methods[name]["nll"] == pytest.approx(nll, abs=1e-3)


TWO = {"id": "two", "question": "7", "choices": ["x", "y"]}
THREE = {"id": "three", "question": "50000", "choices": ["x", "y", "z"]}
FOUR = {"id": "four", "question": "9000", "choices": ["x", "y", "z", "w"]}


def choice_predictor() -> FakePredictor:
    return FakePredictor(template=TEMPLATES["multiple_choice"], labels=("A", "B", "C", "D"))


def ask(*inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), "options": options}


async def test_a_failing_prompt_is_blamed_on_its_input() -> None:
    predictor = choice_predictor()
    predictor.poison[9000] = NonFiniteError("NaN")
    async with serve(predictor) as served:
        failed = await served.client.post("/predict", json=ask(TWO, THREE, FOUR))
    assert (failed.status_code, failed.json()["error"]["field"]) == (422, "inputs.2")
