"""Bodies of POST and GET /feedback."""

from __future__ import annotations

from pydantic import Field, FiniteFloat

from service.feedback.records import Baseline, Outcome, Signal
from service.http.schemas.base import Answer, Probability, Strict
from service.http.schemas.evaluate import LabelMetrics
from service.http.schemas.inputs import Label


class FeedbackItem(Strict):
    """The true label of one prediction."""

    prediction_id: str = Field(min_length=1, max_length=64, examples=["gJ3mGpXbHk1TzqJm0yQe2A"])
    """As POST /predict gave it."""
    label: Label = Field(
        description="True label: one of the names in its probs. If several may be right: the list of those that "
        "are, which may be empty.",
        examples=["positive"],
    )


class FeedbackRequest(Strict):
    """True labels of earlier predictions."""

    items: list[FeedbackItem] = Field(min_length=1, description="At most max_inputs (413 above).")


class FeedbackResult(Answer):
    """The result of one item."""

    prediction_id: str = Field(description="The item's.", examples=["gJ3mGpXbHk1TzqJm0yQe2A"])
    status: Outcome = Field(examples=["recorded"])
    """recorded: the first label of this prediction; repeated: the same label again, nothing changed; corrected: another
    label took the place of the first, and the prediction still counts once; unknown: no prediction of this id was made
    for this caller, or it is kept no longer (feedback_keep_s, feedback_rows).
    """


class FeedbackResponse(Answer):
    """The result of each item."""

    results: list[FeedbackResult] = Field(description="In the order of the items.")


class WatchedFigure(Answer):
    """One figure beside what it is compared with; all three in the figure's own unit."""

    value: FiniteFloat | None = Field(examples=[0.41])
    """The metric of the labelled predictions, in its unit; null without any that count."""
    limit: FiniteFloat | None = Field(examples=[0.49])
    """As far to the worse side as chance alone leads once in 1,000 looks, in the figure's unit; null where there is
    nothing to compare with, of nll and map_gain with fewer than 30 rows, and of map_gain with fewer than 5 mistakes of
    MAP.
    """
    reference: FiniteFloat | None = Field(examples=[0.37])
    """In the figure's unit. accuracy, nll, ece, brier, auroc_error: as the artifact's evaluation measured it; coverage:
    the stated level; accepted_risk: the mean target risk; map_gain: 0; null where there is nothing to compare with.
    """


class FiguresOut(Answer):
    """Figures of the labelled predictions in the window. If several labels may be right, over all labels of all
    inputs, each as a question of its own; ece and coverage then have no limit, since labels of an input err together.
    """

    accuracy: WatchedFigure = Field(description="Share of right answers, 0 to 1.")
    nll: WatchedFigure = Field(description="Mean negative log-likelihood, nats.")
    ece: WatchedFigure = Field(description="Expected calibration error over 15 bins, 0 to 1.")
    ece_expected: FiniteFloat = Field(examples=[0.03])
    """The ECE of a calibrated model on the same confidences, 0 to 1: the upward bias of the ECE."""
    brier: WatchedFigure = Field(description="Squared error summed over classes, mean over rows, 0 to 2.")
    auroc_error: WatchedFigure = Field(description="How well the review score ranks the mistakes, 0.5 is chance.")
    coverage: WatchedFigure = Field(
        description="Share of prediction sets that hold the label, 0 to 1; of several labels, of right ones held."
    )
    accepted: int = Field(description="Number of predictions whose decision was accept.", examples=[640])
    accepted_risk: WatchedFigure = Field(description="Error rate of accepted predictions, 0 to 1.")
    map_nll: FiniteFloat | None = Field(examples=[0.85])
    """NLL of MAP on the same rows, nats; null where the model has no answer of its own."""
    map_gain: WatchedFigure
    """NLL of MAP less that of the served predictive, nats; below its limit, MAP is better."""


class FlagOut(Answer):
    """Labelled predictions with one flag."""

    rows: int = Field(description="Number of predictions.", examples=[52])
    error_rate: Probability = Field(examples=[0.35])
    """Share of them that were wrong, 0 to 1; where several labels may be right, that had one wrong."""


class DriftOut(Answer):
    """One number per answer, recent answers against a reference."""

    signal: Signal = Field(examples=["epistemic"])
    """epistemic: nats; confidence: the largest probability, of several labels the least sure one's; score: the review
    score, nats.
    """
    reference: Baseline = Field(examples=["activation"])
    """calibration: the artifact's calibration rows; activation: the first feedback_window answers, against those after
    them.
    """
    gap: Probability = Field(examples=[0.04])
    """Largest gap between the cumulative distributions, 0 to 1 (Kolmogorov-Smirnov)."""
    p_value: Probability = Field(examples=[0.37])
    """Probability of such a gap if nothing had changed."""
    reference_rows: int = Field(description="Number of rows of the reference.", examples=[1000])
    recent_rows: int = Field(description="Number of recent answers.", examples=[1000])


class SeriesOut(Answer):
    """One loaded artifact and predictive."""

    artifact: str = Field(description="The artifact's name.", examples=["fields-smollm2"])
    digest: str = Field(description="Hash of the artifact's content.", examples=["sha256:2c26b46b68ffc68f"])
    predictive: str = Field(examples=["laplace"])
    """The one that was asked for."""
    predictions: int = Field(description="Number of answers since the artifact was first asked.", examples=[25_000])
    recent: int = Field(description="Number of them in the window that drift looks at.", examples=[1000])
    labelled: int = Field(description="Number of labelled predictions in the figures' window.", examples=[1000])
    accepted_share: Probability | None = Field(description="Accepted, of the recent answers, 0 to 1.", examples=[0.64])
    labelled_accepted_share: Probability | None = Field(examples=[0.64])
    """Accepted, of the labelled ones, 0 to 1; where it is far from accepted_share, the figures describe the predictions
    that were labelled and not all.
    """
    figures: FiguresOut | None = Field(description="null while nothing is labelled.")
    labels: dict[str, LabelMetrics] | None = Field(None, examples=[None])
    """Figures of each label, by its name; null while nothing is labelled, and where one label is right."""
    flags: dict[str, FlagOut] = Field(description="By flag, the labelled predictions that had it.")
    drift: list[DriftOut] = Field(description="Each signal against each reference there is for it.")


class WatchResponse(Answer):
    """Calibration in production."""

    window: int = Field(examples=[1000])
    """Number of labelled predictions, and of recent answers, that figures are computed from at most."""
    keep_s: FiniteFloat = Field(description="How many seconds a prediction is kept.", examples=[604_800.0])
    kept: int = Field(description="Number of predictions kept by id.", examples=[25_000])
    series: list[SeriesOut] = Field(description="By artifact and predictive, of those that are loaded.")
