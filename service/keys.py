"""The command that makes, lists and revokes API keys. A token is printed once; the file holds its digest alone.

python -m service.keys create --file keys.json --id team-a --scopes predict,evaluate --expires 2027-01-01
python -m service.keys list --file keys.json
python -m service.keys revoke --file keys.json --id team-a
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from service.security.callers import SCOPES
from service.security.keys_file import Key, KeysFileError, digest, new_token, read_keys, write_keys


def _lock(path: Path) -> FileLock:
    """Return what one command at a time holds, so that each reads what the one before it wrote."""
    target = path.resolve()
    if not target.parent.is_dir():
        raise KeysFileError(f"keys file {path}: there is no folder {target.parent}")
    return FileLock(target.with_name(f".{target.name}.lock"), mode=0o600)


def create(
    path: Path, key_id: str, scopes: Sequence[str], expires: date | None, comment: str | None
) -> tuple[str, Key]:
    """Add a key to the file, which is made where there is none; return its token, which is kept nowhere, and the key.

    Raises:
        KeysFileError: the file is none of keys, or the id or a scope is none.
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


def main(arguments: Sequence[str] | None = None, called: str = "python -m service.keys") -> int:
    """Run one command, which the user knows as ``called``; return the exit status."""
    parser = argparse.ArgumentParser(prog=called, description="Make, list and revoke API keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("create", help="add a key and print its token, once")
    listing = commands.add_parser("list", help="print id, fingerprint, scopes and expiry of every key")
    revoking = commands.add_parser("revoke", help="take an id's keys out; running servers follow within seconds")
    for command in (making, listing, revoking):
        command.add_argument("--file", metavar="FILE", required=True, type=Path, help="the JSON file of keys")
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
        sys.stderr.write(f"{called}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
