"""The base model of a run, loaded once for all of its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from laplora.models.classifier_head import is_adapted


class HeldBase:
    """A base model that one step after another puts an adapter on."""

    def __init__(self) -> None:
        self._held: Any = None

    def adapted(self, load: Callable[[], Any], put: Callable[[Any], Any]) -> Any:
        """Return the base with an adapter; the one that was on it before is gone.

        Args:
            load: gives the base where it is not held yet; put: returns a PEFT model of the base that it is given.
        """
        base = load() if self._held is None else self._held.unload() if is_adapted(self._held) else self._held
        self._held = None  # where the adapter cannot be put on, the base is loaded anew
        base.requires_grad_(False)
        base.eval()
        self._held = put(base)
        return self._held

    def release(self) -> None:
        """Forget the base, whose memory something else is to have."""
        self._held = None
