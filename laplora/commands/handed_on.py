"""Commands of the jobs and of the server under this command's name: every flag is theirs, and so is the status."""

from __future__ import annotations

import typer

from laplora.errors import needs


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
