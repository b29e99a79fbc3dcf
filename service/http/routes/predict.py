"""POST /predict, and how requests for predictions are answered, those of decision models' clients too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from laplora.answers.evaluation import decided_for
from laplora.answers.reasons import reason_for
from laplora.prompts.templates import MODEL_PROBS
from service.feedback.labels import FeedbackStore
from service.http.answers import Answered, check_finite
from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.planning import Planning
from service.http.schemas.predict import NothingAcceptedOut, PredictiveRef, PredictRequest, PredictResponse
from service.scoring.plan import choose_ask
from service.scoring.scorer import Scorer
from service.scoring.ticket import Ask
from service.shadow.candidate import Candidate
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.scoring.model import Model

router = APIRouter(tags=["scoring"], route_class=JsonBodyRoute)


class Predicting:
    """Answers what one HTTP request asks to predict, of one artifact or of several at once."""

    def __init__(
        self, planning: Planning, scorer: Scorer, feedback: FeedbackStore, candidate: Candidate, metrics: Metrics
    ) -> None:
        self._planning, self._scorer, self._feedback = planning, scorer, feedback
        self._candidate, self._metrics = candidate, metrics

    async def answer(self, body: PredictRequest) -> Answered:
        """Return the answer to a body: it becomes a plan, the plan is scored, its predictions are counted and kept.

        Raises:
            LaploraError: as ``Planning.plan`` and ``Scorer.score``.
            UnscorableInputError: a number of an answer is not finite.
        """
        planning, options = self._planning, body.options
        shown = options.shown

        def ask_of(model: Model) -> Ask:
            spread = {"variance": shown.has_variance, "covariance": shown.has_covariance}
            ask = choose_ask(model, predictive=options.predictive, **spread)
            options.check(model, ask.predictive)
            return ask

        async with planning.plan(body, ask_of) as plan:
            plan.may_pass = True
            predictions = await planning.awaited(plan, self._scorer.score(plan))
            artifact, predictive = plan.model.artifact, plan.ask.predictive
            answers = plan.model.decided(predictions, options.wanted)
            check_finite(answers)
            if plan.uncorrected:
                answers = [one.reviewed("other_model") for one in answers]
            await asyncio.sleep(0)  # others' turn: of 256 answers with 150 labels each of these takes milliseconds
            ids: list[str] = []
            if self._feedback.on:
                ids = self._feedback.remember(plan.model, predictive, plan.caller, answers)
            self._candidate.offer(plan, options.wanted, answers, ids)
            await asyncio.sleep(0)
            self._metrics.count_answers(artifact.name, predictive, answers)
            manifest, nothing = artifact.manifest, None
            if all(answer.decision == "review" for answer in answers):
                nothing = plan.model.nothing_accepted(predictive, options.wanted)
            timing = planning.timing(plan, tokens=sum(p.tokens for p in predictions))
            head: dict[str, Any] = {"artifact": artifact_ref(artifact)}
            if nothing is not None:
                head["nothing_accepted"] = NothingAcceptedOut(**vars(nothing))
            if shown.detail == "full":
                recommended, reason = manifest.recommended.predictive, reason_for(manifest, predictive)
                ref = PredictiveRef(name=predictive, recommended=recommended, reason=reason)
                head |= {"predictive": ref, **decided_for(manifest, predictive, options.wanted), "timing_ms": timing}
            corrects = manifest.template.answered is not None
            said = [fields[MODEL_PROBS] if corrects else None for fields in plan.inputs]
            return Answered(PredictResponse(**head, predictions=[]), body.inputs, answers, ids, shown, said)


async def _predicting(request: Request) -> Predicting:
    state = request.app.state  # at once: each part that FastAPI looks up costs every request some 15 microseconds
    return Predicting(Planning(request), state.scorer, state.feedback, state.candidate, state.metrics)


PredictingDep = Annotated[Predicting, Depends(_predicting)]


@router.post("/predict", responses=error_responses(*SCORING_ERRORS), response_model=PredictResponse)
async def predict(body: PredictRequest, predicting: PredictingDep) -> Response:
    """Classify inputs: a label, its probability, whether to accept it and why, and the labels that are possible."""
    return (await predicting.answer(body)).response()
