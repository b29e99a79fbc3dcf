"""The base model of a run, loaded once for all of its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class HeldBase:
    """A base model that one step after another puts an adapter on."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._adapted: Any = None

    def adapted(self, load: Callable[[], Any], put: Callable[[Any], Any]) -> Any:
        """Return the base with an adapter; the one that was on it before is gone.

        Args:
            load: gives the base where it is not held yet; put: returns a PEFT model of the base that it is given.
        """
        base = load() if self._adapted is None else self._adapted.unload()
        self._adapted = None  # where the adapter cannot be put on, the base is loaded anew
        base.requires_grad_(False)
        base.eval()
        self._adapted = put(base)
        return self._adapted

    def release(self) -> None:
        """Forget the base, whose memory something else is to have."""
        self._adapted = None
