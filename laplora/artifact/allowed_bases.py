"""Which base model an artifact that was fetched may name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from laplora.errors import ConfigError
from laplora.models.offline import OFFLINE_ENCODERS, OFFLINE_MODELS
from laplora.remote.address import Address, is_address, parse_address
from laplora.remote.hub import is_commit, is_repository

#: Most characters of a base's name that an error repeats.
_SHOWN = 120


def check_model_allowed(
    address: Address, model: str, revision: str | None, allowed: Sequence[str] = (), what: str = "base model"
) -> None:
    """Raise ConfigError where the artifact at an address may not have this base, or this sentence encoder.

    Without being allowed it may have an offline model; a base in the same bucket, on the same web server, which may
    redirect to another one, or in the same repository as itself; and any of the hub at a commit's whole hash, or where
    the artifact's own address is pinned: by its digest, or on the hub by a commit.

    Args:
        what: is meant, for messages.
        allowed: further bases: names, folders or addresses; ``NAME/*`` is all below one, ``*`` is any, ``hf://*`` any
            of the hub. A repository of the hub is ``OWNER/NAME``, at any revision.
    """
    if model in {*OFFLINE_MODELS, *OFFLINE_ENCODERS} or any(_matches(entry, model) for entry in allowed):
        return
    if (reason := _refusal(address, model, revision)) is not None:
        raise ConfigError(
            f"{address} names the {what} {model[:_SHOWN]!r}, {reason}: where you trust it, allow it by "
            "--allowed-bases (LAPLORA_ALLOWED_BASES, in Python FetchRules(allowed_bases=...))"
        )


def _refusal(address: Address, model: str, revision: str | None) -> str | None:
    """Return why a base that nobody allowed is refused; None where it is not."""
    if is_address(model):
        other = parse_address(model)
        if other.scheme != "hf":
            same = other.scheme == address.scheme and urlsplit(other.url).netloc == urlsplit(address.url).netloc
            return None if same else "which lies in another store than the artifact"
        if other.repository == address.repository:
            return None
        revision = other.revision
    elif not is_repository(model) or Path(model).exists():
        return "a folder of this machine"
    is_pinned = address.sha256 is not None or is_commit(address.revision) or is_commit(revision)
    return None if is_pinned else "on the hub at no commit, and the artifact is not pinned"


def _matches(entry: str, model: str) -> bool:
    if entry == "*":
        return True
    if entry.startswith("hf://") and not _is_on_hub(model):
        return False
    if entry == "hf://*":
        return True
    entry, model = _plain_name(entry), _plain_name(model)
    if entry.endswith("/*"):
        return model.startswith(entry[:-1]) and ".." not in model.split("/")
    return entry == model


def _is_on_hub(model: str) -> bool:
    """Return whether a base is a repository of the hub, and no folder that is named like one."""
    return model.startswith("hf://") or (is_repository(model) and not Path(model).exists())


def _plain_name(name: str) -> str:
    """Return ``OWNER/NAME`` of an address of the hub, and other names as they are."""
    if not name.startswith("hf://") or name.endswith("/*"):
        return name.removeprefix("hf://")
    try:
        return parse_address(name).repository
    except ConfigError:
        return name
