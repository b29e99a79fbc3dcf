"""Every exception laplora raises on purpose, and its warnings.

    LaploraError
    ├── ConfigError             a job or service configuration that cannot work
    ├── DataError               a data file, row or field that cannot be used
    ├── InvalidInputError       one input that cannot be rendered or scored
    │   └── TooManyTokensError  ... because it is longer than the limit
    ├── LabelTokenError         labels that are not single, distinct tokens
    ├── ModelError              a model or adapter the method does not cover
    ├── NonFiniteError          NaN or infinity where a number was promised
    ├── FactorizationError      a curvature that could not be factorised
    ├── PriorError              a prior precision that could not be chosen
    ├── ConditioningError       labels that make an artifact's answers worse
    ├── DownloadError           an offline source that could not be fetched or verified
    │   └── StoreUnreachableError ... because its store does not answer
    ├── UpstreamError           a decision model elsewhere that gives no usable answer
    │   ├── UpstreamUnavailableError  it cannot be reached, takes too long, or is too busy
    │   ├── UpstreamRefusedError      it refuses the request
    │   ├── UpstreamAnswerError       it answers something else than was asked
    │   └── UpstreamChangedError      it is another model than the one that was fitted
    └── ArtifactError           an artifact that cannot be used
        ├── ArtifactNotFoundError
        ├── ArtifactCorruptError        its files are not what its manifest says
        ├── ArtifactIncompatibleError   it belongs to another base, tokenizer or format
        ├── ArtifactWriteError          there is no room to write it
        └── GoldenMismatchError         its recorded answers are not reproduced

A message says what was expected, what came instead, and what to do. It never holds prompt text.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class LaploraError(Exception):
    """Base of every error laplora raises on purpose."""


class LaploraWarning(UserWarning):
    """A request that is met differently, or a result that is worth less than it looks. The figures are still sound."""


def warn(line: str) -> None:
    """Warn of a line where laplora's user called it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "laplora":
        level, frame = level + 1, frame.f_back
    warnings.warn(line, LaploraWarning, stacklevel=level)


@contextmanager
def warnings_said(say: Callable[[str], None]) -> Iterator[None]:
    """Let a command say laplora's warnings in a line each inside the block, whatever filters its user has set."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", LaploraWarning)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, LaploraWarning):
                say(f"warning: {message}")
            else:
                shown(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def first_line(error: Exception) -> str:
    """Return the first line of what another package's error says, or the error's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def install(extra: str) -> str:
    """Return the command that adds an extra to the environment that laplora is in."""
    return f"pip install 'laplora[{extra}]'"


class ConfigError(LaploraError):
    """A configuration that cannot work."""


def needs(extra: str, error: ImportError) -> ConfigError:
    """Return the error of what was asked for without the packages of one of laplora's extras."""
    return ConfigError(f"{error.name or error} is not installed: {install(extra)}")


class DataError(LaploraError):
    """A data file, row or field that cannot be used; the message names file, line and field."""


class InvalidInputError(LaploraError):
    """One input that cannot be rendered or scored; ``field`` is the one at fault, if one is."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class TooManyTokensError(InvalidInputError):
    """An input longer than the limit, with truncation off."""

    def __init__(self, message: str, *, limit: int, got: int) -> None:
        super().__init__(message)
        self.limit = limit
        self.got = got


class LabelTokenError(LaploraError):
    """Labels that are not single, distinct tokens of the tokenizer."""


class ModelError(LaploraError):
    """A base model or adapter that the method does not cover."""


class NonFiniteError(LaploraError):
    """NaN or infinity where a number was promised."""


class FactorizationError(LaploraError):
    """A curvature matrix that could not be factorised."""


class PriorError(LaploraError):
    """A prior precision that could not be chosen."""


class ConditioningError(LaploraError):
    """Labels that make an artifact's answers worse on rows that they are not of."""


class DownloadError(LaploraError):
    """An offline source that could not be fetched or does not match its recorded hash."""


class StoreUnreachableError(DownloadError):
    """A store, hub or web server that does not answer, or fails. Its content may still exist."""


class UpstreamError(LaploraError):
    """A decision model elsewhere that gives no usable answer. The message holds neither its URL nor what it sent.

    ``place``: of the state, where it was one of several; ``field``: of its input, where the model answers others.
    """

    place: int | None = None
    field: str | None = None


class UpstreamUnavailableError(UpstreamError):
    """It cannot be reached, takes too long, or is too busy; ``retry_after_s``: when it may answer, if it said so."""

    retry_after_s: float | None = None


class UpstreamRefusedError(UpstreamError):
    """It refuses the request: its key, its question or its state; ``status``: of HTTP."""

    status = 0


class UpstreamAnswerError(UpstreamError):
    """It answers something else than was asked."""


class UpstreamChangedError(UpstreamError):
    """Another model answers than the one that was fitted."""


class ArtifactError(LaploraError):
    """An artifact that cannot be used. Its files may hold texts of any length, so the end of a message is cut."""

    def __str__(self) -> str:
        return super().__str__()[:1000]


class ArtifactNotFoundError(ArtifactError):
    """No artifact lies at that path or has that name."""


class ArtifactCorruptError(ArtifactError):
    """Files that are not what the manifest says."""


class ArtifactIncompatibleError(ArtifactError):
    """An artifact of another format, base model, tokenizer or quantization."""


class ArtifactWriteError(ArtifactError):
    """An artifact that cannot be written: no disk space, or something else in its place. The old content stays."""


class GoldenMismatchError(ArtifactError):
    """Recorded answers that the loaded model does not reproduce within tolerance."""
