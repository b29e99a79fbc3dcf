"""vLLM's classification API: ``vllm/entrypoints/pooling/classify/protocol.py`` there, as of November 2026."""

from __future__ import annotations

import time

from service.http.protocols.calls import Call, of_texts
from service.http.schemas.predict import PredictionOut, PredictOptions, PredictResponse
from service.http.schemas.vllm import ClassifyData, ClassifyRequest, ClassifyResponse, LaploraDetails, UsageInfo


def call_of(body: ClassifyRequest) -> Call:
    """Return what a request asks."""
    options = PredictOptions(truncate=body.truncate_prompt_tokens is not None)
    return Call(of_texts([(text,) for text in body.input], "input"), len(body.input), body.model, options)


def answer_of(body: ClassifyRequest, response: PredictResponse, request_id: str) -> ClassifyResponse:
    """Return the answer to a request."""
    tokens = sum(prediction.tokens for prediction in response.predictions)
    logits = body.use_activation is False
    return ClassifyResponse(
        id=f"classify-{body.request_id or request_id}",
        created=int(time.time()),
        model=response.artifact.name,
        data=[_data(i, prediction, logits=logits) for i, prediction in enumerate(response.predictions)],
        usage=UsageInfo(prompt_tokens=tokens, total_tokens=tokens),
    )


def _data(index: int, prediction: PredictionOut, *, logits: bool) -> ClassifyData:
    p = prediction
    return ClassifyData(
        index=index,
        label=p.label,
        probs=p.logit_mean if logits else list(p.probs.values()),
        num_classes=len(p.probs),
        laplora=LaploraDetails(
            answered_by=p.answered_by,
            probs_std=None if p.probs_std is None else list(p.probs_std.values()),
            epistemic=None if p.uncertainty is None else p.uncertainty.epistemic,
            aleatoric=None if p.uncertainty is None else p.uncertainty.aleatoric,
            familiarity=p.familiarity,
            score=p.score,
            labels=p.labels,
            prediction_set=p.prediction_set,
            flags=p.flags,
            decision=p.decision,
            truncated=p.truncated,
            prediction_id=p.prediction_id,
        ),
    )
