"""POST /feedback and GET /feedback."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from service.errors import FeedbackOffError
from service.feedback.labels import FeedbackStore
from service.feedback.watch import Figures, Reference, Report
from service.http.body import JsonBodyRoute
from service.http.openapi import BODY_ERRORS, error_responses
from service.http.schemas.feedback import (
    DriftOut,
    FeedbackRequest,
    FeedbackResponse,
    FeedbackResult,
    FiguresOut,
    FlagOut,
    SeriesOut,
    WatchedFigure,
    WatchResponse,
)
from service.scoring.state import ServiceState
from service.security.callers import caller_of

router = APIRouter(tags=["feedback"], route_class=JsonBodyRoute)


@router.post("/feedback", responses=error_responses(*BODY_ERRORS, "batch_too_large", "feedback_off"))
async def give_feedback(body: FeedbackRequest, request: Request) -> FeedbackResponse:
    """Tell the true labels of your earlier predictions; one lost id does not refuse the rest, a wrong label does."""
    state: ServiceState = request.app.state.service
    store = _required(state)
    outcomes = store.give(caller_of(request).name, [(item.prediction_id, item.label) for item in body.items])
    for outcome, count in Counter(outcomes).items():
        state.metrics.count_feedback(outcome, count)
    return FeedbackResponse(
        results=[
            FeedbackResult(prediction_id=item.prediction_id, status=outcome)
            for item, outcome in zip(body.items, outcomes, strict=True)
        ]
    )


@router.get("/feedback", responses=error_responses("feedback_off"))
async def watch_calibration(request: Request) -> WatchResponse:
    """Rolling accuracy, calibration, coverage and risk of labelled predictions, and drift of all, by artifact."""
    state: ServiceState = request.app.state.service
    store = _required(state)
    reports = await run_in_threadpool(store.reports, state.host.loaded_digests)
    return WatchResponse(
        window=store.window, keep_s=store.keep_s, kept=len(store), series=[_series_out(report) for report in reports]
    )


def _required(state: ServiceState) -> FeedbackStore:
    if not state.feedback.on:
        raise FeedbackOffError("the server keeps no predictions, so none can be labelled: feedback_rows is 0")
    return state.feedback


def _series_out(report: Report) -> SeriesOut:
    figures = report.figures
    return SeriesOut(
        artifact=report.artifact,
        digest=report.digest,
        predictive=report.predictive,
        predictions=report.predictions,
        recent=report.recent_rows,
        labelled=0 if figures is None else figures.rows,
        accepted_share=report.accepted_share,
        labelled_accepted_share=report.labelled_accepted_share,
        figures=None if figures is None else _figures_out(figures, report.reference),
        flags={}
        if figures is None
        else {name: FlagOut(rows=flag.rows, error_rate=flag.error_rate) for name, flag in figures.flags.items()},
        drift=[DriftOut(signal=d.signal, reference=d.reference, **asdict(d.drift)) for d in report.drift],
    )


def _figures_out(figures: Figures, reference: Reference) -> FiguresOut:
    def figure(value: float | None, reference: float | None, limit: float | None = None) -> WatchedFigure:
        return WatchedFigure(value=value, limit=limit, reference=reference)

    return FiguresOut(
        accuracy=figure(figures.accuracy, reference.accuracy),
        nll=figure(figures.nll, reference.nll, figures.nll_limit),
        ece=figure(figures.ece, reference.ece, figures.ece_limit),
        ece_expected=figures.ece_expected,
        brier=figure(figures.brier, reference.brier),
        auroc_error=figure(figures.auroc_error, reference.auroc_error),
        coverage=figure(figures.coverage, reference.coverage, figures.coverage_limit),
        accepted=figures.accepted_rows,
        accepted_risk=figure(figures.accepted_risk, figures.target_risk, figures.accepted_risk_limit),
        map_nll=figures.map_nll,
        map_gain=figure(figures.map_gain, 0.0, figures.map_gain_limit),
    )
