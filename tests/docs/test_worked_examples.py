"""The worked examples of CONTRIBUTING.md do what they say."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType
from typing import Any

import httpx
import pytest
from documents import Block, blocks
from serving import serve


def module_of(block: Block) -> ModuleType:
    """Return the module that a block is, under the name that its first line says, imported from nowhere."""
    path = block.text.partition("\n")[0].removeprefix("# ")
    module = ModuleType(path.removesuffix(".py").replace("/", "."))
    exec(compile(block.text, str(block), "exec"), vars(module))
    return module


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The modules of CONTRIBUTING.md's Python blocks by name, importable while the test lasts."""
    found = {}
    for block in blocks("python"):
        if block.page == "CONTRIBUTING.md":
            module = module_of(block)
            monkeypatch.setitem(sys.modules, module.__name__, module)
            found[module.__name__] = module
    return found


def test_the_endpoint_answers(examples: dict[str, Any]) -> None:
    async def ask() -> httpx.Response:
        async with serve() as served:
            served.app.include_router(examples["service.http.routes.labels"].router)
            return await served.client.get("/labels")

    response = asyncio.run(ask())
    assert response.status_code == 200
    assert response.json() == {"labels": ["negative", "positive"]}
