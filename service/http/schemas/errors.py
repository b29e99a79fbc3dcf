"""The body of every error."""

from __future__ import annotations

from pydantic import Field

from service.http.schemas.base import Answer


class ErrorDetail(Answer):
    """What went wrong."""

    code: str = Field(description="Stable name of the error.", examples=["too_many_tokens"])
    message: str = Field(examples=["the prompt has 900 tokens, the limit is 512: shorten it or set truncate"])
    """What was expected, what came, what to do."""
    field: str | None = Field(None, examples=["inputs.0.text"])
    """Dotted path of the field at fault."""
    limit: int | None = Field(default=None, description="The limit that was passed, in its own unit.", examples=[512])
    got: int | None = Field(default=None, description="What came instead, in the limit's unit.", examples=[900])


class ErrorResponse(Answer):
    """The one shape of every error."""

    error: ErrorDetail = Field(description="What went wrong, for programs and for people.")
    request_id: str = Field(examples=["0b6e1c0d3c5f4b0e9a51c1a7f3f0e2d4"])
    """Also in the X-Request-ID header and in the server's log."""
