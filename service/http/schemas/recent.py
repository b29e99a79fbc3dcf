"""Bodies of /suggest/recent."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.base import Answer, ArtifactName, Strict, Timing
from service.http.schemas.suggest import Reasons, RecentOptions

_EXAMPLE: dict[str, Any] = {
    "text": "a gripping, funny, beautifully acted film .",
    "suggested": {
        "gain": 1.7,
        "cumulative_gain": 1.7,
        "predicted": "negative",
        "probs": {"negative": 0.52, "positive": 0.48},
        "entropy": 0.69,
        "familiarity": 0.41,
    },
}


def _with_fields(schema: dict[str, Any]) -> None:
    """Add to the schema the fields that a template may have, and an example."""
    text = {"type": "string"}
    kinds = [text, {"type": "array", "items": text}]
    schema["additionalProperties"] = {"anyOf": kinds, "description": "Fields of the artifact's template, as sent."}
    schema["examples"] = [_EXAMPLE]


class RecentRequest(Strict):
    """Which artifact's inputs to choose among, and how."""

    artifact: ArtifactName = None
    options: RecentOptions = Field(default_factory=lambda: RecentOptions(), description="How to choose.")


class RecentInput(BaseModel):
    """The fields of the artifact's template, and why it is worth a label. With `label` added it is a labelled row."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_with_fields)

    suggested: Reasons = Field(description="Why it is worth a label.")


class RecentResponse(Answer):
    """Which of the inputs that were answered lately to label next, in that order."""

    artifact: ArtifactRef = Field(description="Which artifact answered them, and chose.")
    rows: int = Field(examples=[200])
    """Number of inputs that were looked at: all that are kept and that you may see, or as many of them at random as one
    request may bring, by max_inputs, by max_body_bytes and by what one caller may hold of the queue.
    """
    repeated: int = Field(examples=[0])
    """Number of inputs that were left out because their prompt is that of another one."""
    unfamiliar: int = Field(examples=[0])
    """Number of inputs that were left out because their familiarity is below least_familiarity."""
    inputs: list[RecentInput] = Field(description="In the order to label them: any first part is a batch.")
    timing_ms: Timing = Field(description="Where the time went, ms.")


class RecentForgotten(Answer):
    """What the server has forgotten."""

    forgotten: int = Field(description="Number of inputs forgotten, of all artifacts.", examples=[200])
