"""The worked example of CONTRIBUTING.md does what it says."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType

import httpx
import pytest
from documents import blocks
from serving import serve


def test_the_endpoint_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are modules under the names that their first lines say, imported from nowhere."""
    for block in blocks("python"):
        if block.page == "CONTRIBUTING.md":
            path = block.text.partition("\n")[0].removeprefix("# ")
            module = ModuleType(path.removesuffix(".py").replace("/", "."))
            exec(compile(block.text, str(block), "exec"), vars(module))
            monkeypatch.setitem(sys.modules, module.__name__, module)

    async def ask() -> httpx.Response:
        async with serve() as served:
            served.app.include_router(sys.modules["service.http.routes.labels"].router)
            return await served.client.get("/labels")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()) == (200, {"labels": ["negative", "positive"]})
