"""What the tests try of what there is more than enough of: a share of it, and all of it with LAPLORA_EXHAUSTIVE=1."""

from __future__ import annotations

import os

EXHAUSTIVE = os.environ.get("LAPLORA_EXHAUSTIVE") == "1"


def drawn(examples: int) -> int:
    """Return how many examples are drawn of so many."""
    return examples if EXHAUSTIVE else examples // 4
