"""Bodies of /shadow and /artifacts/{name}/shadow."""

from __future__ import annotations

from pydantic import Field, FiniteFloat

from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.base import Answer, Probability, Strict
from service.shadow.terms import Better, Verdict


class ShadowRequest(Strict):
    """How a loaded artifact is to answer beside the active one."""

    share: float = Field(0.1, gt=0, le=1, examples=[0.1])
    """Share of the answered rows that it answers too, drawn at random, 0 to 1."""
    activate_if_better: list[Better] = Field([], max_length=3, examples=[["nll"]])
    """Figures in which it has to be better for certain, all of them, to be activated: accuracy or nll, and beside these
    accepted_share. Empty: it is compared alone.
    """
    confidence: float = Field(0.95, gt=0.5, lt=1, examples=[0.95])
    """Probability that no look ever calls a figure better that is not."""


class ShadowFigures(Answer):
    """Figures of one of the two on the labelled rows of both."""

    accuracy: Probability | None = Field(description="Share of right answers, 0 to 1.", examples=[0.89])
    nll: FiniteFloat | None = Field(examples=[0.29])
    """Mean negative log-likelihood, nats; no row counts as more than 3, that of a probability of 5 %."""
    accepted: int = Field(description="Number of rows that it accepted, of the labelled ones.", examples=[120])
    accepted_risk: Probability | None = Field(description="Error rate of these, 0 to 1.", examples=[0.03])


class ShadowDifference(Answer):
    """How much better the candidate is in one figure; above 0 it is."""

    figure: Better = Field(examples=["nll"])
    """accepted_share: of all rows of both; accuracy, and nll in nats: of the labelled rows, accepted and reviewed ones
    of the active artifact weighted by their shares of all rows.
    """
    value: FiniteFloat | None = Field(examples=[0.05])
    """As measured, in the figure's unit; null where the active artifact's accepted, or reviewed, rows have no label."""
    low: FiniteFloat = Field(examples=[0.01])
    """The least, in the figure's unit, with the confidence of the request, at all looks together."""


class ShadowPair(Answer):
    """Two labels that both gave to the same rows."""

    active: str = Field(description="The active artifact's label.", examples=["sports"])
    shadow: str = Field(description="The candidate's label.", examples=["business"])
    rows: int = Field(description="Number of rows.", examples=[4])


class ShadowOut(Answer):
    """How the candidate compares. Rows are of this server since it began; labels are of all servers that share jobs."""

    artifact: ArtifactRef = Field(description="The candidate.")
    active: ArtifactRef = Field(description="The artifact that answers.")
    share: Probability = Field(description="Share of rows that the candidate answers too, 0 to 1.", examples=[0.1])
    since: FiniteFloat = Field(description="When it was asked for, Unix seconds.", examples=[1_790_000_000.0])
    activate_if_better: list[Better] = Field(description="As in the request.", examples=[["nll"]])
    confidence: Probability = Field(description="Probability, as in the request.", examples=[0.95])
    rows: int = Field(description="Number of rows that both answered.", examples=[400])
    missed: int = Field(examples=[0])
    """Number of drawn rows that the candidate did not answer, because the server was busy or it had no answer."""
    agreement: Probability | None = Field(description="Share of rows with the same label, 0 to 1.", examples=[0.93])
    accepted_share: dict[str, Probability] = Field(examples=[{"active": 0.64, "shadow": 0.71, "both": 0.6}])
    """Share of rows that each accepted, and that both did, 0 to 1; empty before any row."""
    labelled: int = Field(description="Number of rows of both with a label.", examples=[180])
    figures: dict[str, ShadowFigures] = Field(description="Of active and shadow, on the labelled rows.")
    differences: list[ShadowDifference] = Field(description="Of every figure.")
    pairs: list[ShadowPair] = Field(description="The most frequent labels that differ, at most 20.")
    verdict: Verdict = Field(examples=["waiting"])
    """not_asked: nothing activates it; waiting: not better for certain yet; better: it is activated in a moment;
    undecided: labels did not tell them apart before feedback_window or feedback_keep_s was over: begin again.
    """
    reason: str = Field(examples=["the gain in nll is -0.021 at least"])
    """Why, in words."""


class ShadowResponse(Answer):
    """The candidate in the shadow, if there is one."""

    shadow: ShadowOut | None = Field(description="null: there is none, or it is not loaded.")
