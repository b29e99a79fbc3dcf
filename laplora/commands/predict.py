"""``laplora predict < in.jsonl > out.jsonl``: one answer a line, as ``POST /predict`` writes it, in order."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laplora.commands.answering import How, answers, encode, load
from laplora.commands.console import ArtifactOption, BatchOption, DeviceOption, PredictiveOption, Status, needs, say
from laplora.errors import InvalidInputError, LaploraError

if TYPE_CHECKING:
    from laplora.predictor import Predictor

#: Longest line of input, in bytes.
_LINE_BYTES = 8 << 20


def predict(
    artifact: ArtifactOption,
    predictive: PredictiveOption = None,
    order_average: Annotated[
        str | None, typer.Option(metavar="reverse|all", help="Ask each question in several orders of its choices.")
    ] = None,
    target_risk: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Error rate that accepted answers may have (default: the artifact's)."),
    ] = None,
    truncate: Annotated[bool, typer.Option(help="Cut inputs that are too long, instead of an error.")] = False,
    batch_size: BatchOption = 16,
    lines: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=100_000, help="Lines that are read before they are answered; 1: one by one."
        ),
    ] = 256,
    device: DeviceOption = "auto",
) -> None:
    """Answer inputs: JSON Lines on standard input, as of POST /predict, to JSON Lines on standard output.

    Each line has one input, and answers keep their order: a probability for every label, their spread, flags and the
    decision. A line that cannot be answered becomes {"line": N, "error": {...}}, and the exit status is 1. Blank lines
    are passed over.
    """
    how = How(predictive, batch_size, truncate, order_average, target_risk)
    try:
        from service.http.answers import prediction_out  # noqa: F401  is what answers are written by
    except ImportError as error:
        raise needs("service", error) from None
    predictor = load(artifact, device, how)
    bad = total = 0
    source, out = _lines(), sys.stdout.buffer
    while window := list(islice(source, lines)):
        for written in answered_lines(predictor, window, how):
            bad += "error" in written
            total += 1
            out.write(json.dumps(written, ensure_ascii=False).encode() + b"\n")
        out.flush()
    say(f"{total} inputs, {bad} of them without an answer")
    raise typer.Exit(Status.FAILED if bad else Status.DONE)


def answered_lines(predictor: Predictor, window: Sequence[tuple[int, bytes]], how: How) -> Iterator[dict[str, Any]]:
    """Yield what is written for each line, in order; ``window`` has the lines with their numbers."""
    from service.http.answers import prediction_out
    from service.http.schemas.inputs import Input
    from service.http.schemas.predict import PredictOptions

    found: list[dict[str, Any] | Input] = []
    questions = []
    for number, line in window:
        try:
            item = _input(line)
            questions.append(encode(predictor, item.template_fields, how))
            found.append(item)
        except LaploraError as error:
            found.append(_failed(number, error))
    answered = iter(answers(predictor, questions, how))
    for (number, _), item in zip(window, found, strict=True):
        if isinstance(item, dict):
            yield item
            continue
        try:
            out = prediction_out(number, item, next(answered)[0], PredictOptions())
        except LaploraError as error:  # no finite answer
            yield _failed(number, error)
        else:
            yield out.model_dump(mode="json", exclude_unset=True)


def _failed(number: int, error: LaploraError) -> dict[str, Any]:
    return {"line": number, "error": {"message": str(error), "field": getattr(error, "field", None)}}


def _lines() -> Iterator[tuple[int, bytes]]:
    """Yield the lines of standard input that are not blank, by number; of one over the limit its start alone."""
    stream, number = sys.stdin.buffer, 0
    while line := stream.readline(_LINE_BYTES + 1):
        number += 1
        if len(line) > _LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(_LINE_BYTES)) and not rest.endswith(b"\n"):
                continue
        if line.strip():
            yield number, line


def _input(line: bytes) -> Any:
    """Return a line as an input; InvalidInputError where it is none."""
    from pydantic import ValidationError

    from service.http.schemas.inputs import Input

    if len(line) > _LINE_BYTES:
        raise InvalidInputError(f"the line has more than {_LINE_BYTES:,} bytes")
    try:
        return Input.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].replace(" at line 1 column ", " at column ")
        raise InvalidInputError(f"{place}: {message}" if place else message) from None
