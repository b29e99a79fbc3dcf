"""POST /evaluate, for batches small enough to answer at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from laplora.errors import InvalidInputError, NonFiniteError
from service.body import JsonBodyRoute
from service.callers import caller_of
from service.engine import Ask
from service.errors import UnscorableInputError
from service.openapi import SCORING_ERRORS, error_responses
from service.routes.artifacts import artifact_ref
from service.routes.predict import record, timing_of
from service.schemas import EvaluateOptions, EvaluateRequest, EvaluateResponse, LabelledInput, MethodMetrics
from service.scoring import Scored, ServiceState, check_inputs, choose_predictor, score, while_awaited

if TYPE_CHECKING:
    from laplora.prediction import Prediction
    from laplora.predictor import Predictor

router = APIRouter(tags=["scoring"], route_class=JsonBodyRoute)


@router.post("/evaluate", responses=error_responses(*SCORING_ERRORS))
async def evaluate(body: EvaluateRequest, request: Request) -> EvaluateResponse:
    """Measure every predictive of the artifact on labelled inputs: accuracy, NLL, ECE, Brier, error ranking."""
    begun = time.monotonic()
    state: ServiceState = request.app.state.service
    deadline = begun + state.settings.request_timeout_s
    predictor = choose_predictor(state, body.artifact)
    check_inputs(state, body.inputs, order_average=body.options.order_average)
    labels = [label_index(i, item, predictor.artifact.manifest.labels) for i, item in enumerate(body.inputs)]

    async def work() -> tuple[Scored, dict[str, MethodMetrics]]:
        scored = await score(
            state,
            predictor,
            [item.template_fields for item in body.inputs],
            ask=Ask(predictor.recommended, also=predictor.predictives),
            truncate=body.options.truncate,
            order_average=body.options.order_average,
            deadline=deadline,
            caller=caller_of(request),
        )
        try:
            return scored, await run_in_threadpool(measure_all, scored, labels, predictor, body.options)
        except NonFiniteError:
            raise UnscorableInputError("the model has no finite answer for one of the inputs", field="inputs") from None

    scored, methods = await while_awaited(request, work(), deadline=deadline)
    timing = timing_of(scored, begun)
    record(request, timing, rows=len(labels), tokens=sum(p.tokens for p in scored.predictions))
    return EvaluateResponse(
        artifact=artifact_ref(predictor.artifact), rows=len(labels), methods=methods, timing_ms=timing
    )


def label_index(index: int, item: LabelledInput, labels: Sequence[str]) -> int:
    """Return the position of an input's true label among the labels it can take.

    Raises:
        InvalidInputError: the label is not one of them.
    """
    choices = item.template_fields.get("choices")
    possible = list(labels[: len(choices)] if isinstance(choices, list) else labels)
    if item.label not in possible:
        raise InvalidInputError(
            f"input {index}: the label must be one of {possible}, the artifact's label words",
            field=f"inputs.{index}.label",
        )
    return possible.index(item.label)


def measure_all(
    scored: Scored, labels: Sequence[int], predictor: Predictor, options: EvaluateOptions
) -> dict[str, MethodMetrics]:
    """Return the metrics of every predictive by name; with orders averaged, ``NAME_order_average`` beside each."""
    if scored.own_order is None:
        return measure(scored.predictions, labels, predictor, options)
    averaged = measure(scored.predictions, labels, predictor, options)
    own = measure(scored.own_order, labels, predictor, options)
    return own | {f"{name}_order_average": metrics for name, metrics in averaged.items()}


def measure(
    predictions: Sequence[Prediction], labels: Sequence[int], predictor: Predictor, options: EvaluateOptions
) -> dict[str, MethodMetrics]:
    """Return the metrics of every predictive that the predictions hold, by name.

    Each ranks its mistakes by its own review score, or its entropy where it has none.
    """
    import torch

    from laplora.metrics import evaluate_probs

    truth = torch.tensor(labels)

    def metrics(rows: list[list[float]], scores: list[float] | None = None) -> MethodMetrics:
        # Rows with fewer choices have probability 0 at the classes they cannot take.
        probs = torch.zeros(len(rows), predictor.class_count, dtype=torch.float64)
        for i, row in enumerate(rows):
            probs[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
        ranking = None if scores is None else torch.tensor(scores, dtype=torch.float64)
        found: dict[str, Any] = evaluate_probs(
            probs, truth, ranking, bins=options.bins, resamples=options.resamples, seed=options.seed
        ).to_json()
        del found["rows"]
        return MethodMetrics.model_validate(found)

    first = predictions[0]
    methods = {"map": metrics([p.map_probs for p in predictions])}
    methods[first.predictive] = metrics([p.probs for p in predictions], [p.score for p in predictions])
    for name in first.calibrated_probs:
        methods[name] = metrics(
            [p.calibrated_probs[name] for p in predictions], [p.calibrated_scores[name] for p in predictions]
        )
    return methods
