"""The protocol of decision models: each question is answered by the loaded artifact whose question it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from fastapi import APIRouter, Request, Response

from laplora.answers.written import written_answer
from laplora.prompts.questions import AnsweredQuestion, Criteria, QuestionType, as_text, question_of_body
from laplora.upstream.asking import UpstreamAnswer
from service.errors import BatchTooLargeError, InvalidRequestError, NotReadyError, shown_field
from service.http.answers import Answered
from service.http.body import JsonBodyRoute
from service.http.disconnects import while_awaited
from service.http.openapi import SCORING_ERRORS, STATE_ERRORS, error_responses
from service.http.routes.artifacts import question_out
from service.http.routes.dependencies import ArtifactsDep, SettingsDep, UpstreamDep
from service.http.routes.predict import PredictingDep
from service.http.schemas.inputs import Input
from service.http.schemas.predict import PredictOptions, PredictRequest
from service.http.schemas.systemone import (
    ALIASES,
    AskedQuestion,
    ChoiceAnswer,
    NoulAnswer,
    NoulCriteria,
    ScoreAnswer,
    SystemOneDetails,
    SystemOneErrorResponse,
    SystemOneModel,
    SystemOneModels,
    SystemOnePassed,
    SystemOneRequest,
    SystemOneResponse,
    SystemOneUsage,
)
from service.telemetry.request_record import note

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.artifact.folder import Artifact
    from laplora.artifact.manifest import Manifest


class _SystemOneRoute(JsonBodyRoute):
    max_keys: ClassVar[int] = 256  # of a choice's options, and of questions


router = APIRouter(tags=["protocols"], route_class=_SystemOneRoute)


@dataclass(frozen=True)
class _Asked:
    """A question of a request, and whose it is; fields: of that artifact's template."""

    id: str
    artifact: Artifact
    answers: AnsweredQuestion
    criteria: Criteria
    fields: Mapping[str, Any]


@router.post(
    "/v1/systemone",
    responses=error_responses(*SCORING_ERRORS, model=SystemOneErrorResponse),
    response_model=SystemOneResponse,
)
async def systemone(
    request: Request,
    body: SystemOneRequest,
    artifacts: ArtifactsDep,
    settings: SettingsDep,
    predicting: PredictingDep,
    upstream: UpstreamDep,
) -> Response:
    """Answer questions about a state, as a decision model does: each by the artifact that was fitted for it."""
    if len(body.questions) > settings.max_inputs:
        raise BatchTooLargeError(
            f"the request has {len(body.questions)} questions, max_inputs is {settings.max_inputs}: send it in parts",
            field="questions",
            limit=settings.max_inputs,
            got=len(body.questions),
        )
    artifacts.require_taking()
    models = [place.model for place in artifacts.shelf.places]
    if body.model and body.model not in ALIASES:
        await artifacts.require_loaded(body.model)
        models = [model for model in (artifacts.shelf.find(body.model),) if model is not None]
    # Comparing and writing out a large body takes a while: other requests are served meanwhile.
    work = partial(_asked, body, [model.artifact for model in models], upstream.passes)
    by_artifact = dict[str, list[_Asked]]()
    known, others = await asyncio.get_running_loop().run_in_executor(request.app.state.parse_threads, work)
    for asked in known:
        by_artifact.setdefault(asked.artifact.name, []).append(asked)
    groups, limit_s = list(by_artifact.values()), settings.request_timeout_s
    passing = upstream.passed(body.state, others, time.monotonic() + limit_s) if others else _nothing()
    working = [asyncio.ensure_future(predicting.answer(_body(group))) for group in groups]
    passed = asyncio.ensure_future(while_awaited(request, passing, timeout_s=limit_s))
    try:
        answered = await asyncio.gather(*working)
        from_model = await passed
    finally:
        for one in (*working, passed):
            one.cancel()
        await asyncio.gather(*working, passed, return_exceptions=True)
    response = _response(body, groups, answered)
    for name, answer in from_model.items():
        response.answers[name] = _passed(body.questions[name], others[name], answer)
        response.model = response.model if groups else answer.model
    response.answers = {name: response.answers[name] for name in body.questions}
    if len(groups) > 1:
        note(request, artifact=", ".join(by_artifact), rows=len(body.questions), tokens=response.usage.input_tokens)
    return Response(response.model_dump_json(), media_type="application/json")


@router.get("/v1/models", responses=error_responses(*STATE_ERRORS, model=SystemOneErrorResponse))
async def v1_models(artifacts: ArtifactsDep) -> SystemOneModels:
    """The names that POST /v1/systemone takes: the loaded artifacts', the active one first, and jev-latest."""
    artifacts.require_taking()
    manifests = {place.model.artifact.name: place.model.artifact.manifest for place in artifacts.shelf.places}
    questions = {name: question_out(manifest) for name, manifest in manifests.items()}
    said = {name: f"{q.type}: {as_text(q.instructions or '')}" if q else "no question" for name, q in questions.items()}
    days = {name: manifest.created[:10] for name, manifest in manifests.items()}
    said |= dict.fromkeys(sorted(ALIASES), "whichever loaded artifact has the question")
    newest = max(days.values())
    return SystemOneModels(
        models=[
            SystemOneModel(name=name, description=what, release_date=days.get(name, newest))
            for name, what in said.items()
        ]
    )


async def _nothing() -> dict[str, UpstreamAnswer]:
    return {}


def _asked(
    body: SystemOneRequest, artifacts: Sequence[Artifact], passes: bool
) -> tuple[list[_Asked], dict[str, AnsweredQuestion]]:
    """Return whose each question is, the first artifact's where several have one; and those of nobody, by id.

    Args:
        passes: whether questions of nobody pass to the model that artifacts correct.

    Raises:
        InvalidRequestError: a question that no artifact answers; it says what they answer.
        InvalidInputError: as ``AnsweredQuestion.state_fields``.
    """
    known = [(artifact, answers) for artifact in artifacts if (answers := artifact.manifest.answers) is not None]
    asked, problems, fields = list[_Asked](), list[dict[str, str]](), dict[str, dict[str, str]]()
    others = dict[str, AnsweredQuestion]()
    for name, question in body.questions.items():
        criteria, place = _criteria(question), shown_field(f"questions.{name}")
        fits = ((a, q) for a, q in known if q.matches(question.type, question.instructions, criteria))
        artifact, answers = next(fits, (None, None))
        if artifact is None or answers is None:
            if passes:
                others[name] = question_of_body(question.model_dump(exclude_unset=True))
                continue
            loaded = "; ".join(f"{one.name!r} answers {_said(one.manifest)}" for one, _ in known) or "none has any"
            message = f"no loaded artifact has this question, word for word: {loaded}"
            problems.append({"field": place, "message": message[:500]})
            continue
        (fewest, most), count = answers.option_counts, len(criteria or ())
        if answers.takes_options and not fewest <= count <= most:
            message = f"{artifact.name!r} takes {fewest} to {most} options, got {count}"
            problems.append({"field": f"{place}.criteria", "message": message})
        elif not problems:
            if artifact.name not in fields:
                fields[artifact.name] = answers.state_fields(body.state)
            filled = fields[artifact.name] | answers.choices(criteria)
            asked.append(_Asked(name, artifact, answers, criteria, filled))
    if problems:
        error = InvalidRequestError("; ".join(problem["message"] for problem in problems), field=problems[0]["field"])
        error.problems, error.problems_count = problems[:16], len(problems)
        raise error
    return asked, others


def _said(manifest: Manifest) -> str:
    """Return the question of an artifact in a few words."""
    question = question_out(manifest)
    return as_text(question.model_dump(include={"type", "instructions", "criteria"}) if question else None)


def _criteria(question: AskedQuestion) -> Criteria:
    criteria = question.criteria
    return criteria.model_dump() if isinstance(criteria, NoulCriteria) else criteria


def _body(group: Sequence[_Asked]) -> PredictRequest:
    """Return what the questions of one artifact ask of it."""
    # The other model takes longer states than the encoder: they are cut, flagged and for review.
    truncate = group[0].artifact.manifest.template.answered is not None
    return PredictRequest(
        inputs=[Input.model_validate(dict(one.fields)) for one in group],
        artifact=group[0].artifact.name,
        options=PredictOptions(truncate=truncate),
    )


def _response(
    body: SystemOneRequest, groups: Sequence[Sequence[_Asked]], answered: Sequence[Answered]
) -> SystemOneResponse:
    """Return the answers in the order of the questions.

    Raises:
        NotReadyError: an artifact was replaced by another of its name since its question was looked up.
    """
    found = dict[str, NoulAnswer | ChoiceAnswer | ScoreAnswer]()
    for group, one in zip(groups, answered, strict=True):
        if one.head.artifact.digest != group[0].artifact.digest:
            raise NotReadyError("an artifact was replaced while it was asked: try again")
        for asked, item, (prediction, its_id), said in zip(group, one.inputs, one.rows(), one.said, strict=True):
            found[asked.id] = _answer(asked, written_answer(prediction, item.template_fields), prediction, its_id, said)
    names = {group[0].artifact.name for group in groups}
    return SystemOneResponse(
        model=names.pop() if len(names) == 1 else min(ALIASES),
        answers=found,
        usage=SystemOneUsage(input_tokens=sum(p.tokens for one in answered for p in one.predictions)),
    )


def _answer(
    asked: _Asked,
    written: Mapping[str, Any],
    prediction: Prediction,
    its_id: str | None,
    said: Mapping[str, float] | None,
) -> NoulAnswer | ChoiceAnswer | ScoreAnswer:
    keys, labels = asked.answers.keys(asked.criteria), prediction.labels
    named = dict(zip(labels, keys, strict=True))
    probs = dict(zip(keys, written["probs"].values(), strict=True))
    stds = written["probs_std"]
    details = {
        "artifact": asked.artifact.name,
        "digest": asked.artifact.digest,
        "decision": written["decision"],
        "decision_reason": written["decision_reason"],
        "prediction_set": [named[label] for label in written["prediction_set"]],
        "flags": written["flags"],
        "probs_std": None if stds is None else dict(zip(keys, stds.values(), strict=True)),
        "uncertainty": written["uncertainty"],
        "uncorrected": None if said is None else {named[label]: said[label] for label in labels},
        "prediction_id": its_id,
    }
    most = asked.artifact.manifest.most_options
    if asked.answers.takes_options and most is not None and len(keys) > most:
        reason = f"the question has {len(keys)} options, and a row of the fit had {most} at most"
        details |= {"decision": "review", "decision_reason": reason, "flags": [*written["flags"], "more_options"]}
    return _shaped(asked.answers.asked.type, probs, asked.criteria, SystemOneDetails.model_validate(details))


def _passed(
    question: AskedQuestion, asked: AnsweredQuestion, answer: UpstreamAnswer
) -> NoulAnswer | ChoiceAnswer | ScoreAnswer:
    """Return the other model's answer to a question that no artifact was fitted to."""
    probs = dict(zip(asked.keys(None), answer.probs.values(), strict=True))
    x_laplora = SystemOnePassed(model=answer.model, decision_reason="no artifact was fitted to this question")
    return _shaped(question.type, probs, _criteria(question), x_laplora)


def _shaped(
    type: QuestionType, probs: dict[str, float], criteria: Criteria, x_laplora: SystemOneDetails | SystemOnePassed
) -> NoulAnswer | ChoiceAnswer | ScoreAnswer:
    """Return an answer of a question's type from the probability of each option."""
    if type == "noul":
        return NoulAnswer(noul=probs["true"], x_laplora=x_laplora)
    best, even = max(probs, key=lambda key: probs[key]), 1 / len(probs)
    confidence = max(0.0, (probs[best] - even) / (1 - even))
    shared: dict[str, Any] = {"probabilities": probs, "confidence": confidence, "x_laplora": x_laplora}
    if type == "choice":
        return ChoiceAnswer(choice=best, **shared)
    levels = dict(zip(probs, criteria or (), strict=True))
    return ScoreAnswer(score=sum(int(key) * p for key, p in probs.items()), legend=levels, **shared)
