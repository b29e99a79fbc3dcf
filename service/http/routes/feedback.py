"""POST /feedback and GET /feedback."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool

from service.errors import FeedbackOffError
from service.feedback.labels import FeedbackStore
from service.http.body import JsonBodyRoute
from service.http.openapi import BODY_ERRORS, error_responses
from service.http.routes.dependencies import ArtifactsDep, CallerDep, FeedbackDep, MetricsDep, SharedFeedbackDep
from service.http.schemas.feedback import FeedbackRequest, FeedbackResponse, FeedbackResult, SeriesOut, WatchResponse

router = APIRouter(tags=["feedback"], route_class=JsonBodyRoute)


@router.post(
    "/feedback",
    responses=error_responses(*BODY_ERRORS, "batch_too_large", "feedback_off", "jobs_unavailable", "storage_full"),
)
async def give_feedback(
    body: FeedbackRequest, caller: CallerDep, feedback: FeedbackDep, shared: SharedFeedbackDep, metrics: MetricsDep
) -> FeedbackResponse:
    """Tell the true labels of your earlier predictions; one lost id does not refuse the rest, a wrong label does."""
    _required(feedback)
    outcomes = await shared.give(caller.name, [(item.prediction_id, item.label) for item in body.items])
    for outcome, count in Counter(outcomes).items():
        metrics.count_feedback(outcome, count)
    results = zip(body.items, outcomes, strict=True)
    return FeedbackResponse(
        results=[FeedbackResult(prediction_id=item.prediction_id, status=outcome) for item, outcome in results]
    )


@router.get("/feedback", responses=error_responses("feedback_off"))
async def watch_calibration(feedback: FeedbackDep, artifacts: ArtifactsDep) -> WatchResponse:
    """Rolling accuracy, calibration, coverage and risk of labelled predictions, and drift of all, by artifact."""
    store = _required(feedback)
    reports = await run_in_threadpool(store.reports, artifacts.models)
    series = [SeriesOut.model_validate(report, from_attributes=True) for report in reports]
    return WatchResponse(window=store.window, keep_s=store.keep_s, kept=len(store), series=series)


def _required(feedback: FeedbackStore) -> FeedbackStore:
    if not feedback.on:
        raise FeedbackOffError("the server keeps no predictions, so none can be labelled: feedback_rows is 0")
    return feedback
