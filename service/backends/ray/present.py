"""Which replicas there are: told by the router, which Ray Serve tells, and read by the backend of the same process."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class Present:
    """The names of each deployment's replicas. Safe to use from several threads: the router has an event loop of its
    own.
    """

    def __init__(self) -> None:
        self._replicas: dict[str, frozenset[str]] = {}
        self._lock = threading.Lock()

    def tell(self, deployment: str, replicas: Iterable[str]) -> None:
        with self._lock:
            self._replicas[deployment] = frozenset(replicas)

    def of(self, deployment: str) -> frozenset[str]:
        """Return a deployment's replicas; none before the first word of them."""
        with self._lock:
            return self._replicas.get(deployment, frozenset())


PRESENT = Present()
