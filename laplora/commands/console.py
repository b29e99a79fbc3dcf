"""The exit statuses, messages and options that all commands share."""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laplora.errors import ConfigError
from laplora.execution.terminal import escaped

if TYPE_CHECKING:
    from laplora.decisions.wanted import Wanted
    from laplora.settings import CalibrationSettings


class Status(IntEnum):
    """Exit statuses. ``serve``, ``train``, ``fit`` and ``keys`` have those of the server and of the jobs."""

    DONE = 0
    #: A threshold of ``--fail-if`` was crossed, or a row has no answer: the command ran, and its output is whole.
    FAILED = 1
    #: It cannot run as it was given.
    USAGE = 2
    #: Interrupted by the user, as shells have it.
    INTERRUPTED = 130


ArtifactOption = Annotated[
    str, typer.Option("--artifact", "-a", metavar="FOLDER|URL", help="The artifact's folder, or where it lies.")
]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
BatchOption = Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Rows that run together, at most.")]
WorkersOption = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, help="1: this process; more are actors of Ray, with a GPU each where there are GPUs."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Threads of torch in each worker (default: of a file in blocks 1, else torch's own)."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, nothing else.")]
PredictiveOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which predictive answers (default: the recommended).")
]

TruncateOption = Annotated[bool, typer.Option(help="Cut inputs that are too long, instead of an error.")]
TextFieldOption = Annotated[str, typer.Option("--text", metavar="NAME", help="Field of a row that has its text.")]
LabelFieldOption = Annotated[str, typer.Option(metavar="NAME", help="Field of a row that has its label.")]
PageOption = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="HTML file to write.")]
TextsOption = Annotated[bool, typer.Option(help="Whether the page shows the rows' texts.")]
TargetRiskOption = Annotated[
    str | None,
    typer.Option(
        metavar="RISK", help="Error rate that accepted answers may have, or JSON of those by label; *: all others."
    ),
]
CostsOption = Annotated[
    str | None,
    typer.Option(
        metavar="JSON", help='What mistakes and a person\'s look cost, in place of it: \'{"wrong": 30, "review": 2}\'.'
    ),
]
AllowedBasesOption = Annotated[
    str,
    typer.Option(
        "--allowed-bases",
        envvar="LAPLORA_ALLOWED_BASES",
        metavar="NAMES",
        help="Base models, with commas between, that an artifact at an address may have, beside those that any may.",
    ),
]


def allowed(bases: str) -> tuple[str, ...]:
    """Return the base models that ``AllowedBasesOption`` names."""
    return tuple(name.strip() for name in bases.split(",") if name.strip())


def calibration(target_risk: str | None, costs: str | None) -> CalibrationSettings:
    """Return the settings that the two options state; ConfigError: they cannot be read, or both are there."""
    from pydantic import ValidationError

    from laplora.settings import CalibrationSettings

    if target_risk is not None and costs is not None:
        raise ConfigError("--costs stands in place of --target-risk: give one of them")
    stated = {"--target-risk": ("target_risk", target_risk), "--costs": ("costs", costs)}
    for option, (name, text) in stated.items():
        if text is not None:
            try:
                return CalibrationSettings.model_validate({name: _number(text) or json.loads(text) or "nothing"})
            except (ValidationError, ValueError):
                expected = "an error rate between 0 and 1, such as 0.05, or JSON of those by label"
                expected = expected if costs is None else 'numbers such as {"wrong": 30, "review": 2}'
                raise ConfigError(f"{option} {text[:100]}: expected {expected}") from None
    return CalibrationSettings()


def _number(text: str) -> float | None:
    """Return a number that JSON would not take too, such as .05; None of other text."""
    try:
        return float(text)
    except ValueError:
        return None


def wanted(target_risk: str | None, costs: str | None) -> Wanted | None:
    """Return what the two options state; None: neither is there. Errors as ``calibration``."""
    return None if target_risk is None and costs is None else calibration(target_risk, costs).wanted


def say(line: str) -> None:
    """Write one line for people, to standard error: standard output has results alone."""
    sys.stderr.write(f"{escaped(line)}\n")
    sys.stderr.flush()


def write(line: str) -> None:
    """Write one line of results to standard output."""
    sys.stdout.write(f"{escaped(line)}\n")


def write_page(file: Path, page: str | bytes) -> None:
    """Write an HTML file; ConfigError: it cannot be written."""
    from laplora.files.atomic import write_whole

    try:
        write_whole(file, page)
    except OSError as error:
        raise ConfigError(f"--out {file}: {error.strerror}") from None
    say(f"{file} is written; open it in a browser")
