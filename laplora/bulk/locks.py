"""One run at a time on a folder of finished blocks: a lock of the system, or a lease in a store.

A lock that a killed run left behind keeps nobody waiting on a disk: the system let go of it. In a store its object
stays. Who finds one watches whether somebody still renews it, and takes it over where nobody does. No clocks are
compared.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from laplora.bulk.folders import Folder, Local, Store
from laplora.errors import ConfigError, DataError, first_line
from laplora.remote.client import Version

LOCK = ".lock"
#: Seconds between two renewals of a lease; for which one that is not renewed is watched; and between two looks at it.
RENEW_S, WATCH_S, LOOK_S = 5.0, 60.0, 1.0


@contextmanager
def held(folder: Folder, place: str, progress: Callable[[str], None] | None = None) -> Iterator[Callable[[], None]]:
    """Hold a folder against other runs inside the block, and yield what raises once that is over.

    Args:
        place: its path or URL, for messages; progress: called with a line for people where a lock is watched.

    Raises:
        ConfigError: another run holds it; of what is yielded: another run has taken it over.
        DataError: it cannot be locked, or the store does not answer.
    """
    if isinstance(folder, Store):
        lease = _Lease(folder, place)
        lease.take(progress or (lambda _line: None))
        try:
            yield lease.check
        finally:
            lease.end()
    else:
        assert isinstance(folder, Local)
        with _locked(folder.path, place):
            yield lambda: None


@contextmanager
def _locked(path: Path, place: str) -> Iterator[None]:
    lock = FileLock(path / LOCK)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise _in_use(place, "") from None
    except (OSError, NotImplementedError) as error:
        raise DataError(f"{place}: cannot be locked ({first_line(error)[:200]})") from None
    try:
        yield
    finally:
        with suppress(OSError):
            (path / LOCK).unlink()  # while it is held: who had opened it meanwhile sees that it is gone
        lock.release()
        with suppress(OSError):  # other files are in it
            path.rmdir()


def _in_use(place: str, by: str) -> ConfigError:
    return ConfigError(f"{place}: another run{by} works on it now: wait for its end, or write to another place")


class _Lease:
    """The object ``LOCK`` in a store, which says whose it is and is renewed for as long as it is held."""

    def __init__(self, store: Store, place: str) -> None:
        self._store, self._place = store, place
        self._whose = {"run": secrets.token_hex(8), "host": socket.gethostname(), "process": os.getpid()}
        self._times = 0
        self._version: Version | None = None
        self._lost = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="laplora-lease", daemon=True)

    def take(self, say: Callable[[str], None]) -> None:
        """Return once it is held, and is renewed from then on; errors as ``held``."""
        while self._version is None:
            if (there := self._store.found(LOCK)) is None:
                self._version = self._store.create(LOCK, self._content())
                continue
            whose = _whose(there[1])
            by = f" ({whose.get('host')}, process {whose.get('process')})" if whose else ""
            say(f"{self._place} was locked by a run{by}: taken over in {WATCH_S:g} seconds, unless that still works")
            if self._is_left(there[0], by):
                self._version = self._store.replace(LOCK, self._content(), there[0])
        self._thread.start()

    def check(self) -> None:
        """Raise ConfigError where another run has taken it over."""
        if self._lost:
            raise ConfigError(
                f"{self._place}: another run took it over, as this one had not renewed its lock for {WATCH_S:g} "
                "seconds: what is finished is kept"
            )

    def end(self) -> None:
        """Give it back."""
        self._ending.set()
        self._thread.join()
        if self._lost:
            return
        with suppress(DataError):  # who comes next takes it over
            there = self._store.found(LOCK)
            if there is not None and self._is_ours(there[1]):
                self._store.remove([LOCK])

    def _is_left(self, version: Version, by: str) -> bool:
        """Return whether nobody renews it; false: it is gone."""
        until = time.monotonic() + WATCH_S
        while time.monotonic() < until:
            time.sleep(LOOK_S)
            if (now := self._store.found(LOCK)) is None:
                return False
            if now[0] != version:
                raise _in_use(self._place, by)
        return True

    def _renew(self) -> None:
        while not self._ending.wait(RENEW_S):
            with suppress(DataError):  # a store that does not answer now may do so the next time
                if not self._is_renewed():
                    self._lost = True
                    return

    def _is_renewed(self) -> bool:
        # Read first: a store that does not know conditions has written over it, and one whose answer was lost has this.
        there = self._store.found(LOCK)
        if there is None or not self._is_ours(there[1]):
            return False
        self._version = self._store.replace(LOCK, self._content(), there[0])
        return self._version is not None

    def _is_ours(self, content: bytes) -> bool:
        return _whose(content).get("run") == self._whose["run"]

    def _content(self) -> bytes:
        self._times += 1  # so that no two are alike, of which a store would say that they are one
        return json.dumps({**self._whose, "times": self._times}).encode()


def _whose(content: bytes) -> dict[str, object]:
    """Return what a lock says; nothing where somebody else wrote it."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
