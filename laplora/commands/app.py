"""All commands under one name, with completion for the shells (``laplora --install-completion``)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

import laplora
from laplora.commands import audit, calibrate, evaluate, jobs, predict, quick, report, serve, transfer
from laplora.commands import labels as relabel
from laplora.commands.console import Status, say, write
from laplora.errors import LaploraError, needs, warnings_said
from laplora.execution.threads import brief_spins

app = typer.Typer(
    name="laplora",
    help="Calibrated probabilities for LoRA-tuned classifiers.",
    epilog="laplora COMMAND --help says what each takes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


#: Every flag of these commands belongs to another program.
_HANDED_ON: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    "add_help_option": False,
}


def train(context: typer.Context) -> None:
    """Fine-tune, fit, evaluate and package an artifact."""
    raise typer.Exit(_training("run", "laplora train", context))


def fit(context: typer.Context) -> None:
    """Fit the posterior of a run, or of an adapter trained elsewhere."""
    raise typer.Exit(_training("fit", "laplora fit", context))


def keys(context: typer.Context) -> None:
    """Make, list and revoke API keys of a server."""
    try:
        from service.keys import main
    except ImportError as error:
        raise needs("service", error) from None
    raise typer.Exit(main(context.args, "laplora keys"))


def _training(job: str, called: str, context: typer.Context) -> int:
    try:
        from training.__main__ import main
    except ImportError as error:
        raise needs("training", error) from None
    return main([job, *context.args], called)


# In the order of --help: from rows to an artifact, what it is worth, and its use.
app.command(
    "quick",
    short_help="Make a classifier from a file of labelled texts.",
    epilog="Example: laplora quick rows.csv --text message --label topic",
)(quick.quick)
app.command(
    "audit",
    short_help="List the unlikely labels of a file.",
    epilog="Example: laplora audit rows.csv, then laplora quick rows.csv --corrections rows.audit.csv",
)(audit.audit)
app.command("labels", short_help="Change an artifact's labels.", epilog="Example: laplora labels FOLDER")(
    relabel.labels
)
app.command(
    "calibrate",
    short_help="Correct the answers of a decision model elsewhere by your labels.",
    epilog="Example: laplora calibrate --url URL --questions questions.json --rows labelled.jsonl",
)(calibrate.calibrate)
app.command("train", **_HANDED_ON)(train)
app.command("fit", **_HANDED_ON)(fit)
app.command(
    "evaluate",
    short_help="Measure an artifact on labelled rows; can fail a script.",
    epilog="Example: laplora evaluate -a FOLDER --data rows.jsonl --fail-if 'accuracy<0.8'",
)(evaluate.evaluate)
app.command(
    "report",
    short_help="Write the page from which to decide whether to ship.",
    epilog="Example: laplora report -a FOLDER --data rows.jsonl --out report.html",
)(report.report)
app.command(
    "predict",
    short_help="Answer JSON Lines or Parquet, without a server.",
    epilog="Example: laplora predict -a FOLDER < inputs.jsonl > answers.jsonl",
)(predict.predict)
app.command(
    "serve",
    short_help="Serve an artifact over HTTP, to this machine alone.",
    context_settings=serve.CONTEXT,
    epilog="Example: laplora serve artifacts/tickets --port 9000",
)(serve.serve)
app.command(
    "pull",
    short_help="Fetch an artifact from the hub, a store or a web server.",
    epilog="Example: laplora pull s3://models/sst2 --to artifacts/sst2",
)(transfer.pull)
app.command(
    "push",
    short_help="Write an artifact to the hub or an object store.",
    epilog="Example: laplora push artifacts/sst2 s3://models/sst2",
)(transfer.push)
app.add_typer(jobs.app, name="jobs", epilog="Example: laplora jobs submit rows.jsonl --wait --url http://HOST:8000")
app.command("keys", **_HANDED_ON)(keys)


def _version(wanted: bool) -> None:
    if wanted:
        write(f"laplora {laplora.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Say the version, and end."
    ),
) -> None:
    pass


@warnings_said(say)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status (``laplora.commands.console.Status``)."""
    brief_spins()
    try:
        app(None if arguments is None else list(arguments), prog_name="laplora")
    except SystemExit as ended:
        if isinstance(ended.__context__, typer.Abort):  # Ctrl-C where something is asked
            return Status.INTERRUPTED
        return ended.code if isinstance(ended.code, int) else Status.DONE if ended.code is None else Status.USAGE
    except BrokenPipeError:  # whoever read the output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.FAILED
    except OSError as error:
        say(f"error: {error.filename or 'a file'}: {error.strerror or error}")
        return Status.USAGE
    except LaploraError as error:
        say(f"error: {error}")
        return Status.USAGE
    except KeyboardInterrupt:
        say("interrupted")
        return Status.INTERRUPTED
    return Status.DONE
