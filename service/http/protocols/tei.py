"""text-embeddings-inference's POST /predict, as its OpenAPI description of 1.7.1 and ``router/src/http`` have it."""

from __future__ import annotations

from typing import Any

from service.http.protocols.calls import Call, of_texts
from service.http.schemas.predict import PredictionOut, PredictOptions, PredictResponse
from service.http.schemas.tei import TeiInputs, TeiPrediction, TeiPredictRequest

TeiAnswer = list[TeiPrediction] | list[list[TeiPrediction]]


def is_tei(value: Any) -> bool:
    """Return whether a body of POST /predict is in TEI's shape: inputs that are texts or lists, not objects.

    One that has a field of laplora's own alone is laplora's, wrong as its inputs are.
    """
    if not isinstance(value, dict) or "artifact" in value or "options" in value:
        return False
    inputs = value.get("inputs")
    first = inputs[0] if isinstance(inputs, list) and inputs else inputs
    return isinstance(first, str) or (isinstance(inputs, list) and isinstance(first, list) and bool(inputs))


def call_of(body: TeiPredictRequest) -> Call:
    """Return what a request asks."""
    inputs: TeiInputs = body.inputs
    options = PredictOptions(truncate=bool(body.truncate))
    return Call(of_texts(inputs.sequences, "inputs"), len(inputs.sequences), None, options, tells_ids=False)


def answer_of(body: TeiPredictRequest, response: PredictResponse) -> TeiAnswer:
    """Return the answer to a request: of a batch a list for each input, else the one list."""
    answers = [_labels(prediction, raw_scores=body.raw_scores) for prediction in response.predictions]
    return answers if body.inputs.batch else answers[0]


def _labels(prediction: PredictionOut, *, raw_scores: bool) -> list[TeiPrediction]:
    """Return the labels by falling score; of equal ones the last first, as TEI has it."""
    scores = prediction.logit_mean if raw_scores else list(prediction.probs.values())
    pairs = sorted(zip(scores, prediction.probs, strict=True), key=lambda pair: pair[0])
    return [TeiPrediction(score=score, label=label) for score, label in reversed(pairs)]
