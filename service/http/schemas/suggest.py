"""Bodies of POST /suggest."""

from __future__ import annotations

from pydantic import Field, FiniteFloat

from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.base import (
    Answer,
    ArtifactName,
    Probabilities,
    Probability,
    Strict,
    TimeoutSeconds,
    Timing,
    WholeNumber,
)
from service.http.schemas.inputs import Input


class SuggestOptions(Strict):
    """How to choose."""

    count: WholeNumber = Field(100, ge=1, examples=[20])
    """Most inputs to suggest."""
    least_familiarity: Probability = Field(0.0, ge=0, le=1, examples=[0.02])
    """Inputs of less familiarity, 0 to 1, are left out, where the artifact has one."""
    timeout_s: TimeoutSeconds = None
    truncate: bool = Field(False, examples=[False])
    """Whether to cut inputs that are too long, where the artifact cuts them, else from the left, instead of 422."""


class SuggestRequest(Strict):
    """Inputs without labels, of which some are to be labelled."""

    inputs: list[Input] = Field(min_length=1)
    """Inputs, at most max_inputs (413 above), with different ids."""
    artifact: ArtifactName = None
    options: SuggestOptions = Field(default_factory=lambda: SuggestOptions(), description="How to choose.")


class SuggestedInput(Answer):
    """An input that is worth a label, and why."""

    row: int = Field(ge=0, description="Number of inputs before it in the request.", examples=[0])
    id: str | None = Field(description="As sent.", examples=["a1"])

    gain: FiniteFloat = Field(examples=[1.7])
    """The information that its label is expected to give about the model's weights, nats. Without an adapter: about
    those of the heads that answer, as uncertainty.epistemic of POST /predict; if that is null, the entropy.
    """
    predicted: str | list[str] = Field(examples=["negative"])
    """Most probable label now; where several may be right, the list of those present."""
    probs: Probabilities = Field(examples=[{"negative": 0.52, "positive": 0.48}])
    """Probabilities now, by label, of the recommended predictive."""
    entropy: FiniteFloat = Field(description="Entropy of probs, nats.", examples=[0.69])
    familiarity: Probability | None = Field(examples=[0.41])
    """How like the training inputs it is, 0 to 1, as in POST /predict; null where the artifact has none."""


class SuggestResponse(Answer):
    """Which inputs to label next, in that order."""

    artifact: ArtifactRef = Field(description="Which artifact chose.")
    rows: int = Field(description="Number of inputs.", examples=[200])
    repeated: int = Field(examples=[0])
    """Number of inputs that were left out because their prompt is that of an earlier one."""
    unfamiliar: int = Field(examples=[0])
    """Number of inputs that were left out because their familiarity is below least_familiarity."""
    suggested: list[SuggestedInput] = Field(description="In the order to label them, the largest gain first.")
    timing_ms: Timing = Field(description="The time of each stage, ms.")
