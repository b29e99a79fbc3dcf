"""Changes of artifacts: the path and key of a request for one, its status, and what it came to."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import quote

from laplora.client.answers import Record
from laplora.client.failures import DETAILS, ChangeFailedError


class Change(Record):
    """The answer to GET /changes/ID, and to POST /artifacts/NAME/load and similar requests."""

    id: str
    kind: str
    artifact: str
    status: Literal["queued", "running", "succeeded", "failed"]
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        return self.status in ("succeeded", "failed")


def path_of(change_id: str) -> str:
    return f"/changes/{quote(change_id, safe='')}"


def artifact_path(name: str, change: str) -> str:
    """Return where an artifact is loaded, activated, unloaded or conditioned."""
    return f"/artifacts/{quote(name, safe='')}/{change}"


def outcome_of(change: Change) -> dict[str, Any]:
    """Return what a finished change came to, or raise ChangeFailedError."""
    if change.result is not None:
        return change.result
    error = change.error or {"code": None, "message": change.status}
    message = f"{change.kind} of {change.artifact}: {error['message']}"
    raise ChangeFailedError(message, **{name: error.get(name) for name in DETAILS})
