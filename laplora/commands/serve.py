"""``laplora serve FOLDER|URL``: the server, in this process or on Ray, to this machine alone unless flags say more."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import laplora
from laplora.commands.console import say
from laplora.errors import ConfigError, install
from laplora.remote.address import is_address

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
#: The flags and variables that grant access; if one is given, it decides alone.
_WHO_MAY_ASK = ("--auth", "--keys", "--host")
#: On a cluster that runs already its own address holds, and what a variable says here reaches no node.
_ON_A_CLUSTER = ("--auth", "--keys")


class Engine(StrEnum):
    """Who has the weights."""

    LOCAL = "local"
    RAY = "ray"


_ENGINE = typer.Option(
    Engine.LOCAL, help="This process's device, or scorers of a Ray cluster: that of RAY_ADDRESS, else this machine's."
)


def serve(
    context: typer.Context,
    artifact: str = typer.Argument(
        ..., metavar="FOLDER|URL", help="The artifact, as posterior.save or a training run wrote it, or where it lies."
    ),
    port: Annotated[int | None, typer.Option(metavar="N", help="Port to listen on (default: 8000).")] = None,
    engine: Engine = _ENGINE,
) -> None:
    """Serve an artifact over HTTP, by default to this machine alone and without API keys.

    The web UI is at http://127.0.0.1:8000/ then. Every other flag goes to the server, such as --device cpu or --keys
    FILE, and on Ray --scorers 2: python -m service --help lists them all, and python -m service.ray_serve --help those
    of Ray too. On a terminal its log is text, elsewhere JSON (--log-format).
    Without --auth, --keys or --host it answers this machine alone, and asks for no key. On the cluster of RAY_ADDRESS
    one of --keys and --auth is to be given.
    """
    if artifact.startswith("-") or any(not flag.startswith("-") for flag in context.args[:1]):
        raise ConfigError("the folder comes first, then the server's flags: laplora serve FOLDER --device cpu ...")
    if not is_address(artifact) and not Path(artifact).is_dir():
        raise ConfigError(f"no artifact at {artifact}: that is no folder")
    _check_installed("service", "uvicorn")
    given = ["--artifact", artifact, *([] if port is None else ["--port", str(port)]), *context.args]
    if engine is Engine.LOCAL and sys.stderr.isatty() and not _says(["--log-format"], given):
        given += ["--log-format", "text"]
    if engine is Engine.RAY and os.environ.get("RAY_ADDRESS"):
        if not _has_one_of(_ON_A_CLUSTER, given):
            raise ConfigError(
                "say who may ask on the cluster of RAY_ADDRESS: --keys FILE, where its nodes have that, --auth keys "
                "where their environment names the file, or --auth off for all who reach it"
            )
    elif not _says(_WHO_MAY_ASK, given):
        given += ["--host", "127.0.0.1", "--auth", "off"]
        say("no API keys are asked for, and this machine alone is answered; --keys FILE asks for keys")
    module = "service" if engine is Engine.LOCAL else "service.ray_serve"
    sys.argv = [f"python -m {module}", *given]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _check_installed(*packages: str) -> None:
    """Make sure that packages can be imported; those of this project are those beside this library.

    Raises:
        ConfigError: one that is not installed.
    """
    beside = str(Path(laplora.__file__).resolve().parent.parent)
    if beside not in sys.path[:1]:
        sys.path.insert(0, beside)  # before a folder of the same name that the command was started in
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{package} is not installed: {install('service')}")


def _says(wanted: Sequence[str], flags: Sequence[str]) -> bool:
    """Return whether one of the wanted is among the flags, or the environment has its variable."""
    variables = {f"LAPLORA_{flag.removeprefix('--').upper().replace('-', '_')}" for flag in wanted}
    names = {name.upper() for name, value in os.environ.items() if value}  # the server reads them in either case
    return _has_one_of(wanted, flags) or bool(variables & names)


def _has_one_of(wanted: Sequence[str], flags: Sequence[str]) -> bool:
    """Return whether one of the flags is there, or what the server takes for one by its beginning."""
    named = [name for flag in flags if len(name := flag.partition("=")[0]) > len("--")]
    return any(flag.startswith(name) for flag in wanted for name in named)
