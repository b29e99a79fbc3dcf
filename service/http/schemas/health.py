"""Bodies of GET /health and of the Open Inference Protocol's /v2."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.base import Answer


class LiveResponse(Answer):
    """The process answers."""

    status: Literal["live"] = Field(description="Always live.", examples=["live"])


class ReadyResponse(Answer):
    """The artifact answers: a real forward pass and the golden replay succeeded."""

    status: Literal["ready"] = Field(description="Always ready: anything else is a 503.", examples=["ready"])
    artifact: ArtifactRef = Field(description="Which artifact answers.")
    stuck_load: str | None = Field(None, examples=["next-release"])
    """Name of an artifact whose load was given up after load_timeout_s and still runs: no other can be loaded before it
    ends, or the server is restarted. Null otherwise.
    """


class V2Live(Answer):
    """Open Inference Protocol liveness."""

    live: bool = Field(description="Always true.", examples=[True])


class V2Ready(Answer):
    """Open Inference Protocol readiness."""

    ready: bool = Field(description="Always true: anything else is a 503.", examples=[True])


class V2Tensor(Answer):
    """Open Inference Protocol tensor description; -1 is any size."""

    name: str = Field(description="Its name.", examples=["probs"])
    datatype: str = Field(description="Its type, in the protocol's words.", examples=["FP64"])
    shape: list[int] = Field(description="Number of entries along each axis; -1 is any.", examples=[[-1, 2]])


class V2Model(Answer):
    """Open Inference Protocol model metadata."""

    name: str = Field(description="The artifact's name.", examples=["sst2-smollm2"])
    versions: list[str] = Field(description="The artifact's digest.", examples=[["sha256:2c26b46b68ffc68f"]])
    platform: Literal["laplora"] = Field(description="Always laplora.", examples=["laplora"])
    inputs: list[V2Tensor] = Field(description="The template's fields.")
    outputs: list[V2Tensor] = Field(description="What POST /predict answers with.")
