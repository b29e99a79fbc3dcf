"""All commands under one name, with completion for the shells (``laplora --install-completion``)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

import laplora
from laplora.commands import evaluate, handed_on, jobs, predict, report, serve
from laplora.commands.console import Status, say, write
from laplora.errors import LaploraError

app = typer.Typer(
    name="laplora",
    help="Calibrated probabilities for LoRA-tuned classifiers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("serve", short_help="Serve an artifact over HTTP, to this machine alone.", context_settings=serve.CONTEXT)(
    serve.serve
)
for _name, _command in handed_on.COMMANDS.items():
    app.command(_name, context_settings=handed_on.CONTEXT, add_help_option=False)(_command)
app.command("evaluate", short_help="Measure an artifact on labelled rows, with bars that fail a script.")(
    evaluate.evaluate
)
app.command("predict", short_help="Answer JSON Lines from standard input, without a server.")(predict.predict)
app.command("report", short_help="Write the page from which to decide whether to ship.")(report.report)
app.add_typer(jobs.app, name="jobs")


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status (``laplora.commands.console.Status``)."""
    try:
        app(None if arguments is None else list(arguments), prog_name="laplora")
    except SystemExit as ended:
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
