"""Bodies of GET /health."""

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
