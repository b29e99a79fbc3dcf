"""``laplora serve FOLDER``, also ``python -m laplora``: what the library does from a command line.

The server is no part of the library, and no wheel has it: it is looked up by name when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import laplora
from laplora.errors import ConfigError, LaploraError

#: Exit status of a command that cannot run as it was given; the server's of a wrong setting.
_USAGE = 2
#: What says who may ask, by flag and by variable; where one is given, it decides alone.
_WHO_MAY_ASK = ("--auth", "--keys", "--host")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="laplora", description="Calibrated probabilities for LoRA-tuned classifiers.")
    top.add_argument("--version", action="version", version=f"laplora {laplora.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve an artifact over HTTP, by default to this machine alone and without API keys",
        description="Serve an artifact over HTTP. Without --auth, --keys or --host it answers this machine alone, "
        "without API keys.",
        epilog="Every other flag goes to the server: python -m service --help lists them.",
        allow_abbrev=False,
    )
    serve.add_argument("artifact", metavar="FOLDER", help="the artifact, as posterior.save or a training run wrote it")
    serve.add_argument("--port", default=None, help="TCP port (default: 8000)")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0 done, 2 refused with a reason, or the server's own."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, further = parser().parse_known_args(given)
    if further and given.index(further[0]) < given.index(options.artifact):
        _tell(
            f"error: the folder comes first, then {further[0]} and the server's other flags: laplora serve FOLDER ..."
        )
        return _USAGE
    port = [] if options.port is None else ["--port", options.port]
    try:
        return _serve(["--artifact", options.artifact, *port, *further])
    except LaploraError as error:
        _tell(f"error: {error}")
        return _USAGE


def _serve(flags: list[str]) -> int:
    """Run the server in this process until it is stopped; it ends the process with its own status.

    Raises:
        ConfigError: the server is not installed.
    """
    _find_server()
    if not _says_who_may_ask(flags):
        flags = [*flags, "--host", "127.0.0.1", "--auth", "off"]
        _tell("no API keys are asked for, and this machine alone is answered; --keys FILE asks for keys")
    sys.argv = ["python -m service", *flags]
    runpy.run_module("service", run_name="__main__", alter_sys=True)
    return 0


def _says_who_may_ask(flags: Sequence[str]) -> bool:
    """Return whether a flag says so, also one that the server takes for it by its beginning, or a variable."""
    named = [name for flag in flags if len(name := flag.partition("=")[0]) > len("--")]
    variables = {f"LAPLORA_{flag.removeprefix('--').upper()}" for flag in _WHO_MAY_ASK}
    said = {name.upper() for name, value in os.environ.items() if value}  # the server reads them in either case
    return any(flag.startswith(name) for flag in _WHO_MAY_ASK for name in named) or bool(variables & said)


def _find_server() -> None:
    """Make the server's package importable: that of the checkout which this library lies in, else an installed one."""
    checkout = Path(laplora.__file__).resolve().parent.parent
    if (checkout / "service" / "__main__.py").is_file():
        sys.path.insert(0, str(checkout))
    elif importlib.util.find_spec("service") is None or importlib.util.find_spec("service.settings") is None:
        raise ConfigError(
            "the server is not installed here: a wheel of laplora holds the library alone. Run this in a checkout of "
            "the repository after make setup, or use its image, which docker/README.md builds"
        )
    if importlib.util.find_spec("uvicorn") is None:
        raise ConfigError("the server's packages are not installed: pip install 'laplora[service]'")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  the command's user interface


if __name__ == "__main__":
    sys.exit(main())
