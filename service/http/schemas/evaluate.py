"""Bodies of POST /evaluate, and the metrics of one method."""

from __future__ import annotations

from pydantic import Field, FiniteFloat

from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.base import Answer, ArtifactName, Strict, TimeoutSeconds, Timing, WholeNumber
from service.http.schemas.inputs import LabelledInput


class MeasureOptions(Strict):
    """How to evaluate."""

    truncate: bool = Field(
        default=False,
        description="Whether to cut inputs that are too long, from the left, instead of 422.",
        examples=[False],
    )
    order_average: bool = Field(
        default=False,
        description="Whether to ask each question in several orders of its choices, as in POST /predict, and measure "
        "the average too: as NAME_order_average beside every method. Limits count an input's orders.",
        examples=[False],
    )
    bins: WholeNumber = Field(
        default=15,
        ge=1,
        le=100,
        description="Number of equal-width confidence bins of ece and reliability.",
        examples=[15],
    )
    resamples: WholeNumber = Field(
        default=1000,
        ge=10,
        le=2000,
        description="Number of bootstrap resamples behind the 95 % intervals.",
        examples=[1000],
    )
    seed: WholeNumber = Field(
        default=0, ge=0, le=2**31 - 1, description="Seed of the bootstrap, a number of no unit.", examples=[0]
    )


class EvaluateOptions(MeasureOptions):
    """How to evaluate, and for how long."""

    timeout_s: TimeoutSeconds = None


class EvaluateRequest(Strict):
    """Labelled inputs to measure the artifact on."""

    inputs: list[LabelledInput] = Field(
        min_length=1,
        fail_fast=True,
        description="Labelled inputs, at most max_inputs (413 above), with different ids.",
    )
    artifact: ArtifactName = None
    options: EvaluateOptions = Field(default_factory=lambda: EvaluateOptions(), description="How to evaluate.")


class ReliabilityBinOut(Answer):
    """One confidence bin (lower, upper]."""

    lower: FiniteFloat = Field(description="Lower edge, a probability.", examples=[0.9])
    upper: FiniteFloat = Field(description="Upper edge, a probability.", examples=[1.0])
    count: int = Field(description="Number of inputs in the bin.", examples=[120])
    confidence: FiniteFloat | None = Field(
        description="Mean confidence, a probability; null in an empty bin.", examples=[0.96]
    )
    accuracy: FiniteFloat | None = Field(
        description="Share of right answers, 0 to 1; null in an empty bin.", examples=[0.95]
    )


class RiskCoverageOut(Answer):
    """Error rate among the inputs kept, as the least certain are set aside."""

    coverage: list[FiniteFloat] = Field(description="Share of inputs kept, 0 to 1.", examples=[[0.5, 1.0]])
    risk: list[FiniteFloat] = Field(description="Error rate among them, 0 to 1.", examples=[[0.02, 0.16]])
    area: FiniteFloat = Field(description="Area under the curve, 0 to 1; lower is better.", examples=[0.05])


class MethodMetrics(Answer):
    """Metrics of one way to get probabilities."""

    accuracy: FiniteFloat = Field(description="Share of right answers, 0 to 1.", examples=[0.84])
    nll: FiniteFloat = Field(description="Mean negative log-likelihood, nats.", examples=[0.374])
    ece: FiniteFloat = Field(description="Expected calibration error, 0 to 1.", examples=[0.036])
    brier: FiniteFloat = Field(
        description="Mean over inputs of the squared error summed over classes, 0 to 2.", examples=[0.23]
    )
    auroc_error: FiniteFloat | None = Field(
        description="How well the uncertainty ranks the mistakes, 0 to 1, 0.5 is chance; null without both outcomes.",
        examples=[0.78],
    )
    auprc_error: FiniteFloat | None = Field(
        description="Average precision of finding the mistakes by the uncertainty, 0 to 1; null without a mistake.",
        examples=[0.41],
    )
    aurc: FiniteFloat = Field(
        description="Area under the risk-coverage curve, 0 to 1; lower is better.", examples=[0.05]
    )
    excess_aurc: FiniteFloat = Field(
        description="The same above the best ranking that the accuracy allows, 0 to 1.", examples=[0.04]
    )
    intervals: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(
        description="95 % bootstrap interval by metric, in the metric's unit.",
        examples=[{"accuracy": [0.81, 0.87], "nll": [0.33, 0.42]}],
    )
    reliability: list[ReliabilityBinOut] = Field(description="Confidence bins, from the lowest.")
    risk_coverage: RiskCoverageOut = Field(
        description="Error rate among the inputs kept, as the least certain are set aside."
    )


class EvaluateResponse(Answer):
    """Metrics by predictive: every one that the artifact carries."""

    artifact: ArtifactRef = Field(description="Which artifact was measured.")
    rows: int = Field(description="Number of inputs measured.", examples=[256])
    methods: dict[str, MethodMetrics] = Field(
        description="Metrics by predictive: map, the recommended one, and every other that the artifact carries."
    )
    timing_ms: Timing = Field(description="Where the time went, milliseconds.")
