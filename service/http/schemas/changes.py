"""Bodies of /changes, and of the answers that name a change."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from service.http.schemas.artifacts import ActivateResponse, LoadResponse
from service.http.schemas.base import Answer
from service.http.schemas.condition import ConditionResponse, UndoResponse
from service.http.schemas.errors import ErrorDetail


class ChangeOut(Answer):
    """A change of an artifact, and how it is."""

    id: str = Field(description="Its id.", examples=["7f3c1f0ab5a94f6fa7c3d1b2c4e5f607"])
    kind: Literal["load", "activate", "condition", "undo_condition"] = Field(examples=["load"])
    """The requested change."""
    artifact: str = Field(description="Name of the artifact that was asked for.", examples=["fields-smollm2"])
    status: Literal["queued", "running", "succeeded", "failed"] = Field(examples=["succeeded"])
    """queued: it is being looked at and may be refused; running; succeeded: there is a result; failed: the field error
    says why.
    """
    created_at: AwareDatetime = Field(examples=["2026-01-31T12:00:00Z"])
    """When it was asked for, UTC by its server's clock."""
    started_at: AwareDatetime | None = Field(examples=["2026-01-31T12:00:01Z"])
    """When nothing refused it any more; null before."""
    finished_at: AwareDatetime | None = Field(examples=["2026-01-31T12:03:00Z"])
    """When it ended; null before, and where its server ended first. job_keep_s later it is forgotten."""
    error: ErrorDetail | None = Field(description="Why it failed; null unless it did.", examples=[None])
    result: LoadResponse | ActivateResponse | ConditionResponse | UndoResponse | None = Field(
        description="The result, by its kind; null unless it succeeded."
    )


class ChangesResponse(Answer):
    """The changes that are kept."""

    changes: list[ChangeOut] = Field(description="The newest first, at most max_jobs of them.")
