"""``laplora predict``: one answer a line, as ``POST /predict`` writes it, in order; of standard input or of a file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from laplora.bulk.answering import WINDOW, How, load, read
from laplora.bulk.predict import answer_window, predict_file
from laplora.bulk.rows import windows
from laplora.bulk.workers import Workers
from laplora.commands import console
from laplora.data.lines import lines as rows_of
from laplora.errors import ConfigError

if TYPE_CHECKING:
    from laplora.predictor import Predictor


def predict(
    artifact: console.ArtifactOption,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="FILE", help="JSON Lines, CSV or Parquet instead of standard input; also s3://."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Where the answers to --data go; also s3://.")
    ] = None,
    workers: console.WorkersOption = 1,
    threads: console.ThreadsOption = None,
    predictive: console.PredictiveOption = None,
    target_risk: console.TargetRiskOption = None,
    costs: console.CostsOption = None,
    detail: Annotated[
        Literal["short", "full"], typer.Option(help="Fields of an answer: what to act on, or all of them.")
    ] = "short",
    variance: Annotated[
        bool, typer.Option("--variance", help="Add the posterior's spread, also where the predictive has none.")
    ] = False,
    truncate: console.TruncateOption = False,
    batch_size: console.BatchOption = 16,
    lines: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=100_000, help="Lines that are read before they are answered; 1: one by one."
        ),
    ] = WINDOW,
    device: console.DeviceOption = "auto",
    allowed_bases: console.AllowedBasesOption = "",
) -> None:
    """Answer inputs: JSON Lines on standard input, as of POST /predict, to JSON Lines on standard output.

    With --data and --out it is a file of any size, by one worker or by many. Finished parts are kept beside the output,
    and the same command continues.

    Each line has one input, and answers keep their order: a label, the probabilities, whether to accept it and why.
    A line that cannot be answered becomes {"line": N, "error": {...}}, and the exit status is 1. Blank lines are
    passed over.
    """
    how = How(predictive, batch_size, truncate, console.wanted(target_risk, costs), detail, variance)
    if (data is None) != (out is None):
        raise ConfigError("--data and --out go together")
    bases = console.allowed(allowed_bases)
    if data is not None and out is not None:
        who = Workers(workers, device, threads or 1)
        say = console.say
        total, bad = predict_file(artifact, data, out, how, who, window=lines, allowed_bases=bases, progress=say)
    elif workers > 1:
        raise ConfigError("--workers needs --data and --out: standard input is read by one process")
    else:
        total, bad = _standard_input(
            load(read(artifact, how, bases, console.say), device, console.say), how, lines, threads
        )
    console.say(f"{total} inputs, {bad} of them without an answer")
    raise typer.Exit(console.Status.FAILED if bad else console.Status.DONE)


def _standard_input(predictor: Predictor, how: How, window: int, threads: int | None) -> tuple[int, int]:
    """Answer standard input, a window of lines at a time; return how many there are, and how many have no answer."""
    from laplora.execution.workers import torch_threads

    bad = total = 0
    out = sys.stdout.buffer
    with torch_threads(threads):
        for rows in windows(rows_of(sys.stdin.buffer), window):
            for line, is_bad in answer_window(predictor, rows, how):
                bad += is_bad
                total += 1
                out.write(line)
            out.flush()
    return total, bad
