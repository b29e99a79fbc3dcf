"""The file of API keys: what a key is, and reading and writing the file.

A token is ``laplora_`` and 256 random bits. The file holds its SHA-256 alone, without salt or slowness: nobody can try
2^256 tokens. Several entries may have one id: while a key is replaced, both tokens are the same caller.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from laplora.errors import ConfigError
from laplora.files.atomic import write_whole
from service.security.callers import Scope

#: The prefix of every token, so that a scanner for leaked secrets recognises it.
TOKEN_PREFIX = "laplora_"
#: How many digits of a token's SHA-256 name it in listings.
FINGERPRINT_DIGITS = 12


class KeysFileError(ConfigError):
    """A file of API keys that is absent, writable by everyone, or not what it should be."""


class Key(BaseModel):
    """One API key.

    Attributes:
        id: the caller's name, in logs and where callers share something.
        sha256: of the token.
        expires: the day, in UTC, from which the key is refused; None for never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    expires: date | None = None
    comment: str | None = Field(None, max_length=200)

    @property
    def fingerprint(self) -> str:
        """The first digits of the token's SHA-256, which tell one id's keys apart."""
        return self.sha256[:FINGERPRINT_DIGITS]


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[Key, ...]


def digest(token: str) -> str:
    """Return the SHA-256 of a token, in lower-case hexadecimal digits."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Return the keys of a file, which may be none at all.

    Raises:
        KeysFileError: no regular file there, one that everyone can write, or one of another form. The message names
            the file and the place in it, never its content.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeysFileError(f"keys file {path}: expected a regular file")
            if status.st_mode & stat.S_IWOTH:
                raise KeysFileError(f"keys file {path}: everyone can write it, so anyone could add a key: chmod 600")
            raw = file.read()
    except OSError as error:
        raise KeysFileError(f"keys file {path}: {error.strerror}") from None
    if not raw.strip():
        raise KeysFileError(f'keys file {path}: it is empty; without keys it would hold {{"keys": []}}')
    try:
        keys = _KeysFile.model_validate_json(raw).keys
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise KeysFileError(f"keys file {path}: {place}: {first['msg']}") from None
    if len({key.sha256 for key in keys}) < len(keys):
        raise KeysFileError(f"keys file {path}: two keys have the same sha256")
    return keys


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Put a file with these keys in the place of ``path``, in one step, readable by its owner alone.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    text = json.dumps({"keys": [key.model_dump(mode="json", exclude_none=True) for key in keys]}, indent=2) + "\n"
    write_whole(path.resolve(), text, mode=0o600)  # resolved: a link stays one
