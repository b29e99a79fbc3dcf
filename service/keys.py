"""The file of API keys, and the command that makes, lists and revokes them.

    python -m service.keys create --file keys.json --id team-a --scopes predict,evaluate --expires 2027-01-01
    python -m service.keys list --file keys.json
    python -m service.keys revoke --file keys.json --id team-a

A token is ``laplora_`` and 256 bits of the system's randomness. It is printed once; the file holds its SHA-256 alone.
A plain digest, without salt and without the deliberate slowness that a password needs, is enough: nobody can try
2^256 tokens, however fast each try is, and two keys never share a token, so there is nothing for a salt to hide. A
fast digest is also what lets every request be checked without becoming a way to load the server.

Several entries may have one id: while a key is replaced, the old and the new token are the same caller.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from laplora.errors import ConfigError
from laplora.files import write_whole
from service.security.callers import SCOPES, Scope

#: What every token starts with, so that a person, or a scanner for leaked secrets, knows one.
TOKEN_PREFIX = "laplora_"
#: How many digits of a token's SHA-256 name it in listings.
FINGERPRINT_DIGITS = 12


class KeysFileError(ConfigError):
    """A file of API keys that is absent, writable by everyone, or not what it should be."""


class Key(BaseModel):
    """One API key.

    Attributes:
        id: the caller's name, in logs and where callers share something.
        sha256: of the token, 64 lower-case hexadecimal digits.
        scopes: what its holder may ask for.
        expires: the day, in UTC, from which the key is refused; None for never.
        comment: for people.
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
    """Return a new token: the prefix and 256 random bits."""
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


def _lock(path: Path) -> FileLock:
    """Return what one command at a time holds, so that each reads what the one before it wrote."""
    target = path.resolve()
    return FileLock(target.with_name(f".{target.name}.lock"), mode=0o600)


def create(
    path: Path, key_id: str, scopes: Sequence[str], expires: date | None, comment: str | None
) -> tuple[str, Key]:
    """Add a key to the file, which is made where there is none; return its token, which is kept nowhere, and the key.

    Raises:
        KeysFileError: the file is there and is not one of keys, or the id or a scope is not one.
        OSError: the file cannot be written.
    """
    token = new_token()
    unknown = set(scopes) - SCOPES
    if unknown or not scopes:
        raise KeysFileError(f"--scopes: expected some of {', '.join(sorted(SCOPES))}, got {','.join(scopes)!r}")
    try:
        key = Key.model_validate(
            {"id": key_id, "sha256": digest(token), "scopes": scopes, "expires": expires, "comment": comment}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise KeysFileError(f"--{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    with _lock(path):
        present = read_keys(path) if path.exists() else ()
        write_keys(path, [*present, key])
    return token, key


def revoke(path: Path, key_id: str, fingerprint: str | None) -> list[Key]:
    """Take an id's keys out of the file, or the one with this fingerprint; return what went.

    Raises:
        KeysFileError: no such key, or no file of keys.
        OSError: the file cannot be written.
    """
    with _lock(path):
        present = read_keys(path)
        gone = [key for key in present if key.id == key_id and fingerprint in (None, key.fingerprint)]
        if not gone:
            raise KeysFileError(f"keys file {path}: no such key; 'list' shows ids and fingerprints")
        write_keys(path, [key for key in present if key not in gone])
    return gone


def _line(key: Key) -> str:
    expires = "-" if key.expires is None else key.expires.isoformat()
    return f"{key.id:<24} {key.fingerprint}  {','.join(key.scopes):<24} {expires:<10}  {key.comment or ''}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m service.keys", description="Make, list and revoke API keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("create", help="add a key and print its token, once")
    listing = commands.add_parser("list", help="print id, fingerprint, scopes and expiry of every key")
    revoking = commands.add_parser("revoke", help="take an id's keys out; running servers follow within seconds")
    for command in (making, listing, revoking):
        command.add_argument("--file", required=True, type=Path, help="the JSON file of keys")
    making.add_argument("--id", required=True, help="the caller's name: letters, digits, dots, dashes, underscores")
    making.add_argument("--scopes", required=True, help=f"comma-separated, of {', '.join(sorted(SCOPES))}")
    making.add_argument("--expires", type=date.fromisoformat, help="the day, in UTC, from which it is refused")
    making.add_argument("--comment", help="a note for people")
    revoking.add_argument("--id", required=True, help="whose keys")
    revoking.add_argument("--fingerprint", help="only the one that 'list' shows with these digits")
    options = parser.parse_args(arguments)
    try:
        if options.command == "create":
            scopes = [scope.strip() for scope in options.scopes.split(",")]
            token, key = create(options.file, options.id, scopes, options.expires, options.comment)
            # The token alone on standard output, so that it can go into a variable or a file of its own.
            sys.stderr.write(f"{_line(key)}\nThe token is shown this once; {options.file} holds its digest only.\n")
            sys.stdout.write(f"{token}\n")
        elif options.command == "list":
            sys.stdout.write("".join(f"{_line(key)}\n" for key in read_keys(options.file)))
        else:
            gone = revoke(options.file, options.id, options.fingerprint)
            sys.stderr.write("".join(f"revoked {_line(key)}\n" for key in gone))
    except (KeysFileError, OSError) as error:
        sys.stderr.write(f"python -m service.keys: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
