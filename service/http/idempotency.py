"""The header Idempotency-Key, of every route that begins something."""

from __future__ import annotations

from typing import Any

from fastapi import Header


def idempotency_header(description: str) -> Any:
    """Return the optional header: 1 to 255 visible characters of ASCII; what the same key does again in words."""
    return Header(min_length=1, max_length=255, pattern=r"^[!-~]+$", description=description)
