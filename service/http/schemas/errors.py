"""The body of every error."""

from __future__ import annotations

from pydantic import Field

from service.http.schemas.base import Answer


class RefusedLineOut(Answer):
    """The error of one line of an upload."""

    line: int = Field(description="Number of the line, from 1.", examples=[17])
    code: str = Field(description="Stable name of the error.", examples=["invalid_input"])
    message: str = Field(examples=["line 17: the label must be one of ['negative', 'positive']"])
    """The expected and the given value, and what to do."""


class ProblemOut(Answer):
    """One thing that is wrong with a body."""

    field: str = Field(description="Dotted path of the field at fault.", examples=["inputs.3.label"])
    message: str = Field(description="The expected value.", examples=["Field required"])


class ErrorDetail(Answer):
    """An error."""

    code: str = Field(description="Stable name of the error.", examples=["too_many_tokens"])
    message: str = Field(examples=["the prompt has 900 tokens, the limit is 512: shorten it or set truncate"])
    """The expected and the given value, and what to do."""
    field: str | None = Field(None, examples=["inputs.0.text"])
    """Dotted path of the field at fault."""
    limit: int | None = Field(default=None, description="The limit that was passed, in its own unit.", examples=[512])
    got: int | None = Field(default=None, description="The value that came, in the limit's unit.", examples=[900])
    problems: list[ProblemOut] | None = Field(None, examples=[None])
    """The first 16 of several things that are wrong with a body; the other fields are of the first one."""
    problems_count: int | None = Field(None, description="Number of things that are wrong with it.", examples=[None])
    lines: list[RefusedLineOut] | None = Field(None, examples=[None])
    """The errors of a refused upload's lines, of the first 100; the other fields are of the first one."""
    lines_bad: int | None = Field(None, description="Number of lines of the upload that are refused.", examples=[None])


class ErrorResponse(Answer):
    """The one shape of every error."""

    error: ErrorDetail = Field(description="The error, for programs and for people.")
    request_id: str = Field(examples=["0b6e1c0d3c5f4b0e9a51c1a7f3f0e2d4"])
    """Also in the X-Request-ID header and in the server's log."""
