"""A real model behind a real socket: answers, their labels, the figures and the gauges."""

from __future__ import annotations

import httpx
import pytest
import torch
from server_process import server_process
from tiny_runs import FinishedRun

from laplora.artifact.folder import read_artifact
from laplora.client import Client
from laplora.metrics import scores as metrics

#: True labels, so that some answers are wrong.
TEXTS = {
    "a gripping , funny and beautifully acted film .": "positive",
    "dull .": "negative",
    "an utter waste of time": "negative",
    "it is neither as good nor as bad as you have heard": "positive",
    "handsome , well played and strangely hollow .": "positive",
    "two hours of noise without a single idea .": "negative",
}


def test_answers_labels_figures_and_gauges(sentiment_run: FinishedRun) -> None:
    artifact = read_artifact(sentiment_run.artifact)
    inputs = [{"text": text} for _ in range(9) for text in TEXTS]
    labels = [label for _ in range(9) for label in TEXTS.values()]
    with (
        server_process(["-m", "service", "--artifact", str(artifact.path), "--device", "cpu"]) as process,
        process.client() as http,
    ):
        address = str(http.base_url)
        with Client(address) as client:
            answers = client.predict(inputs)
            given = [(str(a.prediction_id), label) for a, label in zip(answers, labels, strict=True)]
            statuses = [[result.status for result in client.feedback(given)] for _ in range(2)]
        watch = httpx.get(f"{address}/feedback", timeout=None).json()
        text = httpx.get(f"{address}/metrics", timeout=None).text
    assert statuses == [["recorded"] * 54, ["repeated"] * 54]
    (found,) = watch["series"]
    assert (found["artifact"], found["predictive"]) == (artifact.name, "laplace")
    assert (found["digest"], found["predictions"], found["labelled"]) == (artifact.digest, 54, 54)

    order = artifact.manifest.labels
    probs = torch.tensor([[a.probs[label] for label in order] for a in answers], dtype=torch.float64)
    truth = torch.tensor([order.index(label) for label in labels])
    figures = found["figures"]
    # JSON holds a float64 whole: the same numbers on both sides.
    assert figures["accuracy"]["value"] == metrics.accuracy(probs, truth) < 1
    assert figures["nll"]["value"] == pytest.approx(metrics.nll(probs, truth), rel=1e-12)
    held = [label in a.prediction_set for a, label in zip(answers, labels, strict=True)]
    assert (figures["coverage"]["value"], figures["coverage"]["reference"]) == (pytest.approx(sum(held) / 54), 0.9)
    assert figures["accepted"] == sum(a.decision == "accept" for a in answers)
    measured = artifact.manifest.metrics["laplace"]
    assert figures["nll"]["reference"] == measured["nll"]
    drifts = {(d["signal"], d["reference"]) for d in found["drift"]}
    assert drifts == {("confidence", "calibration"), ("score", "calibration")}
    labelled = f'{{artifact="{artifact.name}",predictive="laplace"}}'
    wanted = {"feedback_rows": 54, "feedback_nll": figures["nll"]["value"], "reference_nll": measured["nll"]}
    assert {f"laplora_{name}{labelled} {float(value)}" for name, value in wanted.items()} <= set(text.splitlines())
