"""``laplora predict``: one answer a line, as ``POST /predict`` writes it, in order; of standard input or of a file."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from laplora.bulk.answering import How, load
from laplora.bulk.run import Workers, shown_rows
from laplora.commands.console import (
    AllowedBasesOption,
    ArtifactOption,
    BatchOption,
    DeviceOption,
    PredictiveOption,
    Status,
    ThreadsOption,
    WorkersOption,
    folder_of,
    say,
    say_stage,
)
from laplora.errors import ConfigError, needs


def predict(
    artifact: ArtifactOption,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="JSON Lines or Parquet instead of standard input; also s3://."),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Where the answers to --data go; also s3://.")
    ] = None,
    workers: WorkersOption = 1,
    threads: ThreadsOption = None,
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
    allowed_bases: AllowedBasesOption = "",
) -> None:
    """Answer inputs: JSON Lines on standard input, as of POST /predict, to JSON Lines on standard output.

    With --data and --out it is a file of any size, by one worker or by many. What is finished is kept beside the
    output, and the same command goes on from there.

    Each line has one input, and answers keep their order: a probability for every label, their spread, flags and the
    decision. A line that cannot be answered becomes {"line": N, "error": {...}}, and the exit status is 1. Blank lines
    are passed over.
    """
    how = How(predictive, batch_size, truncate, order_average, target_risk)
    if (data is None) != (out is None):
        raise ConfigError("--data and --out go together")
    if data is not None and out is not None:
        total, bad = _of_file(
            folder_of(artifact, allowed_bases), data, out, how, Workers(workers, device, threads or 1), lines
        )
    elif workers > 1:
        raise ConfigError("--workers needs --data and --out: standard input is read by one process")
    else:
        total, bad = _of_standard_input(folder_of(artifact, allowed_bases), device, how, lines, threads)
    say(f"{total} inputs, {bad} of them without an answer")
    raise typer.Exit(Status.FAILED if bad else Status.DONE)


def _of_file(artifact: Path, data: str, out: str, how: How, workers: Workers, window: int) -> tuple[int, int]:
    """Answer a file; return how many rows it has, and how many of them have no answer."""
    from laplora.bulk.score import score

    scored = score(artifact, data, out, how, workers, window=window, progress=say)
    if scored.bad:
        say(f"without an answer: {shown_rows(scored.first_bad, scored.bad)}")
    return scored.rows, scored.bad


def _of_standard_input(artifact: Path, device: str, how: How, window: int, threads: int | None) -> tuple[int, int]:
    """Answer standard input; return the same."""
    try:
        from service.http.answers import prediction_out  # noqa: F401  is what answers are written by
    except ImportError as error:
        raise needs("service", error) from None
    from laplora.bulk.rows import lines, windows
    from laplora.bulk.score import answer_window
    from laplora.bulk.workers import torch_threads

    predictor = load(artifact, device, how, progress=say_stage)
    bad = total = 0
    source, out = lines(sys.stdin.buffer), sys.stdout.buffer
    with nullcontext() if threads is None else torch_threads(threads):
        for rows in windows(source, window):
            for _, line, is_bad in answer_window(predictor, rows, how):
                bad += is_bad
                total += 1
                out.write(line)
            out.flush()
    return total, bad
