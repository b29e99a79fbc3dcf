"""POST /evaluate, for batches small enough to answer at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from laplora.answers.evaluation import accepted_rows, decided_for, measure, method_rows, unfamiliar_share
from laplora.answers.labels import LabelNames, Truth
from laplora.errors import InvalidInputError, NonFiniteError
from service.errors import UnscorableInputError
from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import MeasureThreadsDep, ScorerDep
from service.http.routes.planning import PlanningDep
from service.http.schemas.evaluate import AcceptedOut, EvaluateRequest, EvaluateResponse, MethodMetrics
from service.http.schemas.inputs import LabelledInput
from service.scoring.ticket import Ask

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from service.scoring.model import Model

router = APIRouter(tags=["scoring"], route_class=JsonBodyRoute)


@router.post("/evaluate", responses=error_responses(*SCORING_ERRORS))
async def evaluate(
    body: EvaluateRequest, planning: PlanningDep, scorer: ScorerDep, measure_threads: MeasureThreadsDep
) -> EvaluateResponse:
    """Measure every predictive of the artifact on labelled inputs: accuracy, NLL, ECE, Brier, error ranking."""

    def ask_of(model: Model) -> Ask:
        body.options.check(model, model.recommended)
        return Ask(model.recommended, also=model.predictives)

    async with planning.plan(body, ask_of) as plan:
        model = plan.model
        manifest = model.artifact.manifest
        names = LabelNames.of(manifest)
        truths = [_truth_of(i, item, names) for i, item in enumerate(body.inputs)]

        def measured(predictions: Sequence[Prediction]) -> tuple[dict[str, dict[str, Any]], AcceptedOut]:
            rows = [method_rows(manifest, plan.ask.predictive, answer) for answer in predictions]
            methods = measure(rows, truths, names=names, how=body.options)
            decisions = model.decided(predictions, body.options.wanted)
            answers = [(one.decision, one.arrays.probs.tolist()) for one in decisions]
            decided = decided_for(manifest, plan.ask.predictive, body.options.wanted)
            found = accepted_rows(answers, truths, names, decided.get("costs"))
            return methods, AcceptedOut.model_validate({"predictive": plan.ask.predictive, **decided, **found})

        async def work() -> tuple[Sequence[Prediction], tuple[dict[str, dict[str, Any]], AcceptedOut]]:
            predictions = await scorer.score(plan)
            try:
                return predictions, await measure_threads.run(plan.caller, lambda: measured(predictions))
            except NonFiniteError:
                raise UnscorableInputError(
                    "the model has no finite answer for one of the inputs", field="inputs"
                ) from None

        predictions, (methods, accepted) = await planning.awaited(plan, work())
        return EvaluateResponse(
            artifact=artifact_ref(model.artifact),
            rows=len(truths),
            unfamiliar=unfamiliar_share(manifest, [answer.flags for answer in predictions]),
            accepted=accepted,
            methods={name: MethodMetrics.model_validate(metrics) for name, metrics in methods.items()},
            timing_ms=planning.timing(plan, tokens=sum(p.tokens for p in predictions)),
        )


def _truth_of(index: int, item: LabelledInput, names: LabelNames) -> Truth:
    try:
        return names.truth(item.label, item.template_fields)
    except InvalidInputError as error:
        raise InvalidInputError(f"input {index}: {error}", field=f"inputs.{index}.{error.field}") from None
