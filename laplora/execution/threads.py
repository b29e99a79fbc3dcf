"""How torch's threads wait, which is said before torch is first imported."""

from __future__ import annotations

import os


def brief_spins() -> None:
    """Let a thread of libgomp that waits for the others spin for less than milliseconds, unless the environment says.

    If another process keeps a core busy, spinning threads take ten times as long.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
