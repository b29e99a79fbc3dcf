"""``laplora pull`` and ``laplora push``: artifacts from and to the hub, object stores and web servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from laplora.commands import console

UrlArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="hf://OWNER/NAME[@REVISION][/FOLDER], s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or https://HOST/FOLDER, and "
        "to pin it #sha256=DIGEST.",
    ),
]


def pull(
    url: UrlArgument,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="The artifact's own folder (default: in the cache).")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most bytes of its files together (default: 16 GiB).")
    ] = None,
    max_files: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most of its files (default: 4096).")
    ] = None,
    allowed_bases: console.AllowedBasesOption = "",
    as_json: console.JsonOption = False,
) -> None:
    """Fetch an artifact, check every file against its manifest, and write which folder it is in.

    Without --to it stays in the cache. With --to an older version in that folder is replaced, and nothing but an
    artifact ever is.
    """
    from laplora.artifact.fetched import FetchRules, fetch_artifact, pull_artifact
    from laplora.artifact.folder import check_name, check_replaceable, read_artifact
    from laplora.remote.address import parse_address

    default = FetchRules()
    address = parse_address(url)
    rules = FetchRules(console.allowed(allowed_bases), max_bytes or default.most_bytes, max_files or default.most_files)
    if to is None:
        artifact = read_artifact(fetch_artifact(address, progress=console.say, rules=rules))
    else:
        check_name(to)
        check_replaceable(to)  # before anything is fetched for nothing
        artifact = pull_artifact(address, to, progress=console.say, rules=rules)
    _tell(as_json, folder=str(artifact.path), name=artifact.name, digest=artifact.digest)


def push(
    artifact: Annotated[Path, typer.Argument(metavar="FOLDER", help="The artifact's folder.")],
    url: UrlArgument,
    replace: Annotated[bool, typer.Option("--replace", help="Write in the place of another artifact.")] = False,
    as_json: console.JsonOption = False,
) -> None:
    """Write an artifact to the hub or an object store, and write the address that it has there, pinned to its digest.

    Every file is checked first, and standard error says whose texts leave with it. A repository or bucket must be
    there already. Nothing is written where this artifact is there already.
    """
    from laplora.answers.golden import what_leaves
    from laplora.artifact.fetched import push_artifact
    from laplora.artifact.folder import read_artifact
    from laplora.remote.address import parse_address

    address = parse_address(url)
    read = read_artifact(artifact)
    console.say(f"pushing {read.name!r} to {address}: {what_leaves(read.path)}")
    _tell(as_json, url=push_artifact(read, address, replace=replace), name=read.name, digest=read.digest)


def _tell(as_json: bool, **found: str) -> None:
    """Write what was done: its first value, or all as JSON."""
    console.write(json.dumps(found) if as_json else next(iter(found.values())))
