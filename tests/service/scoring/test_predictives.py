"""``python -m service`` on a tiny artifact with every predictive: each one through a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from server_process import predicted, server_process
from tiny_runs import FinishedRun

from laplora.predictive.kinds import PREDICTIVES
from laplora.predictor import Predictor

NAMES = tuple(PREDICTIVES)
TEXTS = ["The film was superb.", "dull", "The plot was weak, and I say so after seeing it twice.", "qzx ## of"]
#: Float32, in batches of another shape.
TOLERANCE = 1e-4


@pytest.fixture
def client(mixture_run: FinishedRun) -> Iterator[httpx.Client]:
    command = ["-m", "service", "--artifact", str(mixture_run.artifact), "--device", "cpu"]
    with server_process(command) as process, process.client() as client:
        yield client


def test_clients_at_once_get_what_the_library_says_of_the_predictive_they_ask_for_and_evaluate_measures_each(
    client: httpx.Client, mixture_predictor: Predictor
) -> None:
    rows = [mixture_predictor.encode({"text": t}, truncate=True) for t in TEXTS]
    expected = {name: mixture_predictor.predict(rows, name) for name in NAMES}
    names = [*NAMES] * 4
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda name: predicted(client, *TEXTS, predictive=name), names))
    said = mixture_predictor.artifact.manifest.recommended
    recommended = {"recommended": said.predictive, "reason": said.reason}
    assert predicted(client, *TEXTS, covariance=True)["predictive"] == {"name": said.predictive, **recommended}
    for name, body in zip(names, bodies, strict=True):
        assert body["predictive"] == {"name": name, **recommended}
        for got, want in zip(body["predictions"], expected[name], strict=True):
            for probs in ("probs", "map_probs"):
                assert list(got[probs].values()) == pytest.approx(getattr(want, probs), abs=TOLERANCE)
            for part in ("prediction_set", "flags", "decision"):
                assert got[part] == getattr(want, part)
            assert (got["logit_variance"] is None) == (not PREDICTIVES[name].covariance)
            assert (got["uncertainty"] is None) == (want.epistemic is None)
    labels = ["positive", "negative", "negative", "positive"]
    inputs = [{"text": t, "label": label} for t, label in zip(TEXTS, labels, strict=True)]
    methods = client.post("/evaluate", json={"inputs": inputs, "options": {"resamples": 20}}).json()["methods"]
    assert set(methods) == set(PREDICTIVES)
    for name in NAMES:
        answers = predicted(client, *TEXTS, predictive=name)["predictions"]
        right = [p["label"] == label for p, label in zip(answers, labels, strict=True)]
        assert methods[name]["accuracy"] == pytest.approx(sum(right) / 4)
