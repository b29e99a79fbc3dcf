"""Who sent a request: the name that queues, limits and jobs go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fastapi import Request

Scope = Literal["predict", "evaluate", "admin"]
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and what it may ask for.

    Attributes:
        name: an API key's id, or the network address where keys are off.
    """

    name: str
    scopes: frozenset[Scope] = SCOPES

    @property
    def sees(self) -> str | None:
        """The name of whose jobs it may see, its own; None for everybody's, with the scope admin."""
        return None if "admin" in self.scopes else self.name


def caller_of(request: Request) -> Caller:
    """Return whom a request's key names; where keys are off, its network address, with every scope."""
    known: Caller | None = getattr(request.state, "caller", None)
    if known is not None:
        return known
    return Caller("unknown" if request.client is None else request.client.host)
