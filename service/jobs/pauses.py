"""What a job waits out instead of failing, and for how long: exponential back-off with jitter."""

from __future__ import annotations

import random

from service.errors import ArtifactNotLoadedError, DeviceMemoryError, DrainingError, kind_of

_FIRST_S = 0.25
_LONGEST_S = 15.0
#: A row that does not fit the device may fit when another process has left it; after so many tries it does not.
_DEVICE_MEMORY_TRIES = 4


class Pauses:
    """The waits of one job."""

    def __init__(self) -> None:
        self.tried = 0

    def waits_out(self, error: Exception) -> bool:
        """Return whether what was refused is tried again: no room, or not ready or loaded; not the job's own fault."""
        if isinstance(error, DeviceMemoryError) and self.tried >= _DEVICE_MEMORY_TRIES:
            return False
        if isinstance(error, ArtifactNotLoadedError):
            return True
        return kind_of(error).status in (429, 503) and not isinstance(error, DrainingError)

    def next_s(self) -> float:
        """Return for how many seconds to wait now: longer each time, up to 15."""
        longest = min(_LONGEST_S, _FIRST_S * 2.0 ** min(self.tried, 10))
        self.tried += 1
        return longest * random.uniform(0.5, 1.0)

    def over(self) -> None:
        """Begin anew: something went through."""
        self.tried = 0
