"""POST /evaluate, for batches small enough to answer at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from laplora.errors import InvalidInputError, NonFiniteError
from service.errors import UnscorableInputError
from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import MeasureThreadsDep, ScorerDep
from service.http.routes.planning import PlanningDep
from service.http.schemas.evaluate import EvaluateRequest, EvaluateResponse, MethodMetrics
from service.http.schemas.inputs import LabelledInput
from service.scoring.evaluation import check_one_label, label_index, measure, method_rows
from service.scoring.plan import Ask, Scored

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.predictor import Predictor

router = APIRouter(tags=["scoring"], route_class=JsonBodyRoute)


@router.post("/evaluate", responses=error_responses(*SCORING_ERRORS))
async def evaluate(
    body: EvaluateRequest, planning: PlanningDep, scorer: ScorerDep, measure_threads: MeasureThreadsDep
) -> EvaluateResponse:
    """Measure every predictive of the artifact on labelled inputs: accuracy, NLL, ECE, Brier, error ranking."""

    def ask_of(predictor: Predictor) -> Ask:
        check_one_label(predictor.artifact.manifest)
        return Ask(predictor.recommended, also=predictor.predictives)

    async with planning.plan(body, ask_of) as plan:
        predictor = plan.predictor
        labels = [_label_of(i, item, predictor.artifact.manifest.labels) for i, item in enumerate(body.inputs)]

        def measured(scored: Scored) -> dict[str, dict[str, Any]]:
            own_order: Sequence[Prediction | None] = scored.own_order or [None] * len(labels)
            pairs = zip(scored.predictions, own_order, strict=True)
            rows = [method_rows(plan.ask.predictive, answer, in_order) for answer, in_order in pairs]
            return measure(rows, labels, class_count=predictor.class_count, how=body.options)

        async def work() -> tuple[Scored, dict[str, dict[str, Any]]]:
            scored = await scorer.score(plan)
            try:
                return scored, await measure_threads.run(plan.caller, lambda: measured(scored))
            except NonFiniteError:
                raise UnscorableInputError(
                    "the model has no finite answer for one of the inputs", field="inputs"
                ) from None

        scored, methods = await planning.awaited(plan, work())
        return EvaluateResponse(
            artifact=artifact_ref(predictor.artifact),
            rows=len(labels),
            methods={name: MethodMetrics.model_validate(metrics) for name, metrics in methods.items()},
            timing_ms=planning.timing(plan, tokens=sum(p.tokens for p in scored.predictions)),
        )


def _label_of(index: int, item: LabelledInput, labels: Sequence[str]) -> int:
    try:
        return label_index(item.label, item.template_fields, labels)
    except InvalidInputError as error:
        raise InvalidInputError(f"input {index}: {error}", field=f"inputs.{index}.{error.field}") from None
