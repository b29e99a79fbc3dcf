"""``laplora jobs``: large files of inputs on a server, over HTTP."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laplora.commands.console import JsonOption, PageOption, Status, TextsOption, TruncateOption, say, write, write_page
from laplora.errors import ConfigError, needs

if TYPE_CHECKING:
    from laplora.client import Client, Job

#: The variable that has the API key: a flag would be seen in the list of processes.
KEY_VARIABLE = "LAPLORA_API_KEY"

app = typer.Typer(help="Large files on a server, with labels or without: submit, watch, fetch.", rich_markup_mode=None)
UrlOption = Annotated[str, typer.Option("--url", metavar="URL", envvar="LAPLORA_URL", help="Address of the server.")]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help=f"File that has the API key (default: the variable {KEY_VARIABLE})."),
]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as submit and list show it.")]
_URL = "http://localhost:8000"
_LINES_SHOWN = 5


@app.command("submit")
def submit(
    data: Annotated[Path, typer.Argument(metavar="FILE", help="Rows, with label or without: a JSON Lines file.")],
    artifact: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the artifact (default: the active one).")
    ] = None,
    truncate: TruncateOption = False,
    wait: Annotated[bool, typer.Option(help="Wait for it to end, and show what came of it.")] = False,
    url: UrlOption = _URL,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a file and make a job of it."""
    if data.suffix.lower() in (".csv", ".tsv", ".parquet"):
        raise ConfigError(f"{data.name}: a job takes JSON Lines; laplora predict and evaluate read {data.suffix} files")
    with _client(url, key_file) as client:
        job = client.submit_job(data, artifact=artifact, truncate=truncate)
        say(f"job {job.id}: {job.rows} rows, {job.rows_labelled} with a label")
        if wait:
            client.wait_for_job(job, progress=sys.stderr.isatty())
            job = client.job(job)
    _show(job, as_json)


@app.command("list")
def list_jobs(url: UrlOption = _URL, key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """List your jobs, the newest first."""
    with _client(url, key_file) as client:
        jobs = client.jobs()
    if as_json:
        write(json.dumps([job.model_dump(mode="json") for job in jobs]))
        return
    for job in jobs:
        write(f"{job.id}  {job.status:<9}  {job.rows_done}/{job.rows} rows  {job.artifact.name}")


@app.command("show")
def show(job: JobArgument, url: UrlOption = _URL, key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """Show a job: how far it is, its metrics when it is done."""
    with _client(url, key_file) as client:
        _show(client.job(job), as_json)


@app.command("watch", short_help="Watch a job until it has ended.")
def watch(job: JobArgument, url: UrlOption = _URL, key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """Watch a job until it has ended: a line for each change, with --json the whole job on it.

    A lost connection, or a server that starts anew, is waited for, for some minutes.
    """
    with _client(url, key_file) as client:
        from laplora.client import Retries

        patient = Retries(tries=20, longest_s=20.0)  # about five minutes, which outlast a server's start
        client.job(job)  # what is wrong with the address, the key or the id is told of at once
        before = None
        for state in client.watch_job(job, retries=patient):
            if state != before:
                write(json.dumps(state.model_dump(mode="json")) if as_json else _progress(state))
                sys.stdout.flush()
            before = state
    if not as_json:
        _show(state, as_json)
    if state.status != "done":
        raise typer.Exit(Status.FAILED)


@app.command("cancel")
def cancel(
    job: JobArgument, url: UrlOption = _URL, key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """Cancel a job; what it has measured so far is kept."""
    with _client(url, key_file) as client:
        _show(client.cancel_job(job), as_json)


@app.command("remove")
def remove(job: JobArgument, url: UrlOption = _URL, key_file: KeyFileOption = None) -> None:
    """Remove a job with its rows and results. One that has not ended is cancelled first."""
    with _client(url, key_file) as client:
        client.remove_job(job)
    say(f"removed {job}")


@app.command("results", short_help="Fetch every row's answer, as JSON Lines.")
def results(
    job: JobArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="File to write (default: standard output)."),
    ] = None,
    url: UrlOption = _URL,
    key_file: KeyFileOption = None,
) -> None:
    """Fetch every row of a job that is over, with its answer and the upload's own columns, in order."""
    with _client(url, key_file) as client:
        if out is not None:
            client.download_job(job, out)
            say(f"{out} is written")
            return
        for row in client.job_results(job):
            write(row.model_dump_json())


@app.command("report", short_help="Fetch the report: whether to ship, and why.")
def job_report(
    job: JobArgument,
    out: PageOption = Path("report.html"),
    texts: TextsOption = False,
    url: UrlOption = _URL,
    key_file: KeyFileOption = None,
) -> None:
    """Fetch the report of a job that is done: whether to ship, and why, as one HTML file."""
    with _client(url, key_file) as client:
        page = client.job_report(job, texts=texts)
    write_page(out, page)


@contextmanager
def _client(url: str, key_file: Path | None) -> Iterator[Client]:
    try:
        from laplora.client import Client, RequestRefusedError, ServiceUnreachableError
    except ImportError as error:
        raise needs("client", error) from None
    try:
        key = os.environ.get(KEY_VARIABLE) if key_file is None else key_file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--key-file {key_file}: {error}") from None
    try:
        with Client(url, api_key=key or None) as client:
            yield client
    except ServiceUnreachableError as error:
        raise ConfigError(f"{url}: {error}; --url or LAPLORA_URL says where the server is") from None
    except RequestRefusedError as error:
        if not error.lines or not error.lines_bad:
            raise
        shown = [line["message"] for line in error.lines[:_LINES_SHOWN]]
        rest = [f"... {error.lines_bad} lines have a problem"] if error.lines_bad > len(shown) else []
        raise ConfigError("\n".join([*shown, *rest])) from None


def _progress(job: Job) -> str:
    parts = [f"{job.status:<9}", f"{job.rows_done}/{job.rows} rows"]
    if job.rows_bad:
        parts.append(f"{job.rows_bad} without an answer")
    if job.rows_per_second is not None:
        parts.append(f"{job.rows_per_second:.1f} rows/s")
    if job.seconds_left is not None:
        parts.append(f"{job.seconds_left:.0f} s left")
    if job.paused is not None:
        parts.append(str(job.paused.get("message")))
    return "  ".join(parts)


def _show(job: Job, as_json: bool) -> None:
    """Write a job's state, and end with ``Status.FAILED`` where it failed."""
    if as_json:
        write(json.dumps(job.model_dump(mode="json")))
    else:
        write(f"job {job.id}: {job.status}, {job.rows_done} of {job.rows} rows, {job.rows_bad} without an answer")
        if job.error:
            write(f"error: {job.error.get('message')}")
        if (so_far := job.answered) is not None:
            size = sum(size * rows for size, rows in so_far.set_sizes.items()) / so_far.rows
            parts = [f"accept {so_far.decisions.get('accept', 0)}", f"review {so_far.decisions.get('review', 0)}"]
            parts += [f"labels in a set {size:.2f}", *(f"{k} {v:.3f}" for k, v in (so_far.uncertainty or {}).items())]
            parts += [] if so_far.unfamiliar is None else [f"unfamiliar {so_far.unfamiliar:.1%}"]
            write("  ".join([f"  {'answers':<24}", *parts]))
        if job.partial:
            write(f"metrics of rows with a label, of which there are {job.rows_labelled}:")
        for name, of in (job.partial or {}).items():
            write("  ".join([f"  {name:<24}", *(f"{metric} {value:.3f}" for metric, value in of.items())]))
    if job.status == "failed":
        raise typer.Exit(Status.FAILED)
