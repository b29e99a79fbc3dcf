"""The wait before the next try: exponential back-off with jitter, at least as long as the service asks for.

Jitter spreads the clients that a full queue turned away together (Brooker, "Exponential backoff and jitter", 2015).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from laplora.client.failures import ServiceFailedError, ServiceUnavailableError, ServiceUnreachableError
from laplora.errors import ConfigError


@dataclass(frozen=True)
class Retries:
    """When to try again: after 429, 503, and connections that were refused or broke, also behind a proxy (502).

    Inputs may be scored twice. ``unload``, which is refused the second time, is only repeated if it had no effect.

    Attributes:
        tries: in all; 1 never tries again.
        first_s: longest wait before the second try; it doubles with each, up to ``longest_s``.
    """

    tries: int = 8
    first_s: float = 0.5
    longest_s: float = 30.0

    def __post_init__(self) -> None:
        if self.tries < 1 or not 0 < self.first_s <= self.longest_s:
            raise ConfigError(f"retries take one try or more, and 0 < first_s <= longest_s, got {self}")

    def wait_s(self, failure: ServiceFailedError, tried: int) -> float | None:
        """Return the seconds to wait after a number of failed tries, None where the last failure is final."""
        again = isinstance(failure, ServiceUnavailableError | ServiceUnreachableError) and failure.code != "timeout"
        if not again or tried >= self.tries:
            return None
        longest = min(self.longest_s, self.first_s * 2.0 ** (tried - 1))
        return max(failure.retry_after_s or 0.0, longest * random.uniform(0.5, 1.0))
