"""Bodies of POST /evaluate, and the metrics of one method."""

from __future__ import annotations

from pydantic import Field, FiniteFloat

from laplora.decisions.wanted import Costs
from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.base import Answer, ArtifactName, Deciding, Strict, TimeoutSeconds, Timing, WholeNumber
from service.http.schemas.inputs import LabelledInput


class MeasureOptions(Strict):
    """How to evaluate."""

    truncate: bool = Field(False, examples=[False])
    """Whether to cut inputs that are too long, where the artifact cuts them, else from the left, instead of 422."""
    bins: WholeNumber = Field(15, ge=1, le=100, examples=[15])
    """Number of equal-width confidence bins of ece and reliability."""
    resamples: WholeNumber = Field(1000, ge=10, le=2000, examples=[1000])
    """Number of bootstrap resamples behind the 95 % intervals."""
    seed: WholeNumber = Field(0, ge=0, le=2**31 - 1, examples=[0])
    """Seed of the bootstrap, a number of no unit."""


class EvaluateOptions(MeasureOptions, Deciding):
    """How to evaluate, and for how long."""

    timeout_s: TimeoutSeconds = None


class EvaluateRequest(Strict):
    """Labelled inputs to measure the artifact on."""

    inputs: list[LabelledInput] = Field(min_length=1)
    """Labelled inputs, at most max_inputs (413 above), with different ids."""
    artifact: ArtifactName = None
    options: EvaluateOptions = Field(default_factory=lambda: EvaluateOptions(), description="How to evaluate.")


class ReliabilityBinOut(Answer):
    """One confidence bin (lower, upper]."""

    lower: FiniteFloat = Field(description="Lower edge, a probability.", examples=[0.9])
    upper: FiniteFloat = Field(description="Upper edge, a probability.", examples=[1.0])
    count: int = Field(description="Number of inputs in the bin.", examples=[120])
    confidence: FiniteFloat | None = Field(examples=[0.96])
    """Mean confidence, a probability; null in an empty bin."""
    accuracy: FiniteFloat | None = Field(examples=[0.95])
    """Share of right answers, 0 to 1; null in an empty bin."""


class RiskCoverageOut(Answer):
    """Error rate among the inputs kept, as the least certain are set aside."""

    coverage: list[FiniteFloat] = Field(description="Share of inputs kept, 0 to 1.", examples=[[0.5, 1.0]])
    risk: list[FiniteFloat] = Field(description="Error rate among them, 0 to 1.", examples=[[0.02, 0.16]])
    area: FiniteFloat = Field(description="Area under the curve, 0 to 1; lower is better.", examples=[0.05])


class PartialMetrics(Answer):
    """Metrics of one predictive on the rows so far, without intervals."""

    accuracy: FiniteFloat = Field(description="Share of right answers, 0 to 1.", examples=[0.84])
    nll: FiniteFloat = Field(description="Mean negative log-likelihood, nats.", examples=[0.374])
    ece: FiniteFloat = Field(description="Expected calibration error, 0 to 1.", examples=[0.036])


class LabelMetrics(PartialMetrics):
    """Metrics of one label, where several may be right: of whether it is present, which it is said to be above 0.5."""

    present: int = Field(description="Number of inputs that have the label.", examples=[31])
    precision: FiniteFloat | None = Field(examples=[0.81])
    """Share of right ones where it is said to be present, 0 to 1; null where it never is."""
    recall: FiniteFloat | None = Field(examples=[0.7])
    """Share of the inputs with the label of which it is said to be present, 0 to 1; null without such an input."""
    brier: FiniteFloat = Field(examples=[0.12])
    """Mean over inputs of the squared error summed over absent and present, 0 to 2."""


class NllDifferenceOut(Answer):
    """Mean NLL of one predictive less that of another on the same inputs, below 0 where the first is better."""

    difference: FiniteFloat = Field(description="Mean over inputs, nats.", examples=[-0.031])
    low: FiniteFloat = Field(examples=[-0.052])
    """Lower end of its 95 % interval, by a bootstrap that draws the same inputs for both, nats."""
    high: FiniteFloat = Field(description="Upper end, nats.", examples=[-0.011])


class MethodMetrics(PartialMetrics):
    """Metrics of one way to get probabilities. If several labels may be right, over all labels of all inputs: each
    label of an input counts as a question of its own, of whether it is present; intervals draw whole inputs.
    """

    brier: FiniteFloat = Field(examples=[0.23])
    """Mean over inputs of the squared error summed over classes, 0 to 2."""
    kl: FiniteFloat | None = Field(None, examples=[None])
    """NLL less the labels' own entropy, nats, if a label has probabilities: 0 where answers equal labels; else null."""
    mae: FiniteFloat | None = Field(None, examples=[None])
    """Mean number of places from the answer to the true label, if labels have an order; else, and of a job, null."""
    rps: FiniteFloat | None = Field(None, examples=[None])
    """Ranked probability score, squared error of the cumulated probabilities, 0 to 1, if labels have an order; else,
    and of a job, null.
    """
    auroc_error: FiniteFloat | None = Field(examples=[0.78])
    """How well the uncertainty ranks the mistakes, 0 to 1, 0.5 is chance; null without both outcomes."""
    auprc_error: FiniteFloat | None = Field(examples=[0.41])
    """Average precision of finding the mistakes by the uncertainty, 0 to 1; null without a mistake."""
    aurc: FiniteFloat = Field(examples=[0.05])
    """Area under the risk-coverage curve, 0 to 1; lower is better."""
    excess_aurc: FiniteFloat = Field(examples=[0.04])
    """The same above the best ranking that the accuracy allows, 0 to 1."""
    intervals: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(
        examples=[{"accuracy": [0.81, 0.87], "nll": [0.33, 0.42]}]
    )
    """95 % bootstrap interval by metric, in the metric's unit. The ECE has none: drawing rows anew pushes it up."""
    over_temperature: NllDifferenceOut | None = Field(
        None, examples=[{"difference": -0.031, "low": -0.052, "high": -0.011}]
    )
    """NLL less that of temperature scaling on the same inputs; null for temperature scaling itself, and where the
    artifact has none.
    """
    reliability: list[ReliabilityBinOut] = Field(description="Confidence bins, from the lowest.")
    risk_coverage: RiskCoverageOut
    """Error rate among the inputs kept, as the least certain are set aside."""
    exact_match: FiniteFloat | None = Field(None, examples=[None])
    """Share of inputs of which every label is right, 0 to 1; null where one label is right."""
    labels: dict[str, LabelMetrics] | None = Field(None, examples=[None])
    """Metrics of each label, by its name; null where one label is right."""


class CostOut(Answer):
    """Mean cost of an input by the costs that were stated: of a person's look, or of the accepted answer if wrong."""

    mean: FiniteFloat = Field(description="Of the decisions, in the costs' unit.", examples=[0.61])
    interval: tuple[FiniteFloat, FiniteFloat] = Field(
        description="Its 95 % interval, in that unit.", examples=[[0.52, 0.7]]
    )
    all_reviewed: FiniteFloat = Field(description="If all were reviewed, in that unit.", examples=[1.0])
    none_reviewed: FiniteFloat = Field(description="If none were, in that unit.", examples=[1.3])


class AcceptedOut(Answer):
    """The inputs that need no person: POST /predict gives them the decision accept, with the same
    target_risk. Like there, low_confidence, unfamiliar and every other flag of review sends an input to a person.
    """

    predictive: str = Field(examples=["laplace"])
    """The one that decides: the recommended one, which answers unless a request names another."""
    target_risk: FiniteFloat | dict[str, FiniteFloat] | None = Field(None, examples=[0.05])
    """The error rate, 0 to 1, that the decisions were made for, or those by label; null of costs."""
    costs: Costs | None = Field(None, description="The costs that the decisions were made for; null without costs.")
    rows: int = Field(description="Number of inputs accepted.", examples=[205])
    share: FiniteFloat = Field(description="Share of the inputs accepted, 0 to 1.", examples=[0.8])
    wrong: int = Field(examples=[7])
    """Number of accepted inputs whose label is wrong; if several labels may be right, of wrong labels of theirs."""
    error_rate: FiniteFloat | None = Field(examples=[0.034])
    """Wrong ones as a share of the accepted inputs, or of all their labels, 0 to 1; null if none is accepted."""
    interval: tuple[FiniteFloat, FiniteFloat] | None = Field(examples=[[0.014, 0.069]])
    """Exact 95 % interval of error_rate, 0 to 1; nearly exact if several labels may be right; null if none is accepted.
    """
    cost: CostOut | None = Field(None, description="What the decisions cost; null without costs.")


class EvaluateResponse(Answer):
    """Metrics by predictive: every one that the artifact carries."""

    artifact: ArtifactRef = Field(description="Which artifact was measured.")
    rows: int = Field(description="Number of inputs measured.", examples=[256])
    unfamiliar: FiniteFloat | None = Field(examples=[0.016])
    """Share of the inputs that are flagged as unfamiliar, 0 to 1; null where the artifact does not tell."""
    accepted: AcceptedOut = Field(description="Share of the inputs that are accepted, and how many of them are wrong.")
    methods: dict[str, MethodMetrics]
    """Metrics by predictive: map, the recommended one, and every other that the artifact carries."""
    timing_ms: Timing = Field(description="The time of each stage, milliseconds.")
