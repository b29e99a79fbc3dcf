"""Checks before anything loads: the flags, the artifact's place, access."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from pydantic import ValidationError

from laplora.remote.address import is_address, is_this_machine
from service.exit_status import ExitStatus
from service.security.keyring import open_keyring
from service.security.keys_file import KeysFileError
from service.settings import Settings
from service.telemetry.logs import logger

_S = TypeVar("_S", bound=Settings)


def parse_settings(kind: type[_S], arguments: list[str]) -> _S:
    """Return the settings of the environment and the command line; exits with a message for a bad one.

    Args:
        kind: of settings; it names the program.
    """
    try:
        return kind(_cli_parse_args=arguments)  # type: ignore[call-arg]
    except ValidationError as error:
        for problem in problems(error, lambda name: f"--{name.replace('_', '-')} (LAPLORA_{name.upper()})"):
            sys.stderr.write(f"{kind.model_config['cli_prog_name']}: {problem}\n")
        raise SystemExit(int(ExitStatus.USAGE)) from None


def problems(error: ValidationError, place: Callable[[str], str]) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong, without the value, which may be a secret.

    Args:
        place: where a setting is, as a user knows it, by its name.
    """
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        # A problem of several settings together has no place, and its message names them.
        yield (f"{place(name)}: " if name else "") + problem["msg"].removeprefix("Value error, ")


def can_start(settings: Settings) -> bool:
    """Return whether the artifact's folder and the file of keys are there; say what is not, and who may ask."""
    path = settings.artifact_path
    # A remote artifact is fetched when it is loaded: the port answers meanwhile.
    if not is_address(settings.artifact) and not (path / "manifest.json").is_file():
        advice = f"give --artifact a folder with a manifest.json, or a name in {settings.artifacts_root}"
        logger.error("no artifact at %s: %s", path, advice, extra={"event": "load_failed"})
        return False
    try:
        open_keyring(settings)
    except KeysFileError as error:
        logger.error("%s", error, extra={"event": "keys_refused"})
        return False
    say_who_may_ask(settings)
    return True


def say_who_may_ask(settings: Settings) -> None:
    """Warn of a server that asks nobody for a key and that other machines can reach."""
    if settings.auth == "off" and not is_this_machine(settings.host):
        logger.warning(
            "no API key is asked for, and other machines can reach %s: --auth keys --keys FILE asks for one",
            settings.host,
            extra={"event": "auth_off"},
        )
