"""Metrics and traces only watch: what fails in them is logged once, and never fails what they watch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from service.telemetry.logs import log_crash

_failed: set[str] = set()
_lock = threading.Lock()


@contextmanager
def unfailing(what: str) -> Iterator[None]:
    """Swallow an exception raised inside; also a decorator. The first of each ``what`` in the process is logged.

    Args:
        what: name of what watches, for the log.
    """
    try:
        yield
    except Exception as error:
        with _lock:
            first = what not in _failed
            _failed.add(what)
        if first:
            event = {"event": "watcher_failed", "watcher": what}
            log_crash("metrics or traces failed, what they watch goes on", error, event)
