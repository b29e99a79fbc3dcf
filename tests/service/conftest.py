"""Asynchronous tests run on asyncio, the loop that the server runs on; most of them need a server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from serving import Served, serve


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server in this process, with a fake predictor and every setting as it is by default."""
    async with serve() as served:
        yield served
