"""Whose token it is: the keys of the file, looked at again whenever the file changes."""

from __future__ import annotations

import hmac
import os
import threading
from datetime import UTC, date, datetime
from pathlib import Path

from service.errors import UnauthorizedError
from service.security.callers import Caller
from service.security.keys_file import Key, KeysFileError, digest, read_keys
from service.settings import Settings
from service.telemetry.logs import logger

#: Seconds between two looks at the file.
LOOK_EVERY_S = 1.0

_WAYS_OUT = (
    "make a key with 'python -m service.keys create --file FILE --id NAME --scopes predict' and give --keys FILE "
    "(LAPLORA_KEYS), or answer everyone who can reach the port, with --auth off (LAPLORA_AUTH=off)"
)


def today() -> date:
    """Return the day, in UTC, that keys expire by."""
    return datetime.now(UTC).date()


def open_keyring(settings: Settings) -> Keyring | None:
    """Return the keys that the settings name, None where they say that there are to be none.

    Raises:
        KeysFileError: no file is named, or it cannot be used.
    """
    if settings.auth == "off":
        return None
    if settings.keys is None:
        raise KeysFileError(f"API keys are needed and no file of them is named: {_WAYS_OUT}")
    try:
        return Keyring(settings.keys)
    except KeysFileError as error:
        raise KeysFileError(f"{error}: {_WAYS_OUT}") from None


class Keyring:
    """The keys that are good now.

    A file that is broken, empty, writable by everyone or gone changes nothing: the last good keys stay, and the log
    says so once. A file that states that it holds no key, ``{"keys": []}``, is valid: the last key was revoked.

    Raises:
        KeysFileError: the file cannot be used, or holds no key, at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _identity(path)
        self._keys: tuple[Key, ...] = read_keys(path)
        if not self._keys:
            raise KeysFileError(f"keys file {path}: it holds no key")
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def caller(self, token: str) -> Caller:
        """Return whom a token names.

        Raises:
            UnauthorizedError: no key has this token, or it has expired.
        """
        wanted = digest(token)
        matching: Key | None = None
        # Every key is compared, each in constant time: how long it takes tells nothing of which one is near.
        for key in self._keys:
            if hmac.compare_digest(key.sha256, wanted):
                matching = key
        if matching is None:
            raise UnauthorizedError("the API key is not one of this server's: check it, or ask for another")
        if matching.expires is not None and today() >= matching.expires:
            raise UnauthorizedError(f"the API key expired on {matching.expires.isoformat()}: ask for another")
        return Caller(matching.id, frozenset(matching.scopes))

    def start(self) -> None:
        """Look at the file once a second, in a thread: no request waits for a disk."""
        self._thread = threading.Thread(target=self._watch, name="laplora-keys", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Read the file again if it is another than at the last look."""
        identity = _identity(self._path)
        if identity == self._seen:
            return
        self._seen = identity
        try:
            self._keys = read_keys(self._path)
        except KeysFileError as error:
            logger.error("%s; the keys read before stay good", error, extra={"event": "keys_refused"})
        else:
            logger.info("API keys were read again", extra={"event": "keys_read", "keys": len(self._keys)})

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_EVERY_S):
            self.look()


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return what tells one state of a file from the next, None for no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode
