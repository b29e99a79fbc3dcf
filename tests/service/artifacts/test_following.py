"""What a deployment serves outlives its servers: a server that starts serves what was active."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import artifacts_in, changed, library, settings, started

from service.app import create_app
from service.deployment.served import Served
from service.deployment.served import changed as kept_after

pytestmark = pytest.mark.anyio


async def loaded(client: httpx.AsyncClient) -> list[str]:
    """Return the names of the loaded artifacts, the active one first."""
    listed = (await client.get("/artifacts")).json()
    names = [one["name"] for one in listed["artifacts"] if one["loaded"]]
    assert listed["active"] == names[0]
    return names


async def test_a_server_begins_with_what_the_last_one_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "artifacts"
    root.mkdir()
    predictors = artifacts_in(root, "first", "second", "third")

    @asynccontextmanager
    async def server(**values: Any) -> AsyncIterator[httpx.AsyncClient]:
        own = {"artifact": "first", "artifacts_root": root, "jobs_dir": tmp_path / "jobs"} | values
        async with started(create_app(settings(**own), library=library(*predictors))) as client:
            yield client

    async def change(client: httpx.AsyncClient, *changes: str) -> None:
        for one in changes:
            assert (await changed(client, one)).status_code == 200

    async with server() as client:
        assert await loaded(client) == ["first"]
        await change(client, "second/activate", "third/load")
    async with server() as client:
        assert await loaded(client) == ["second", "first", "third"]
        await change(client, "first/unload")
    async with server() as client:
        assert await loaded(client) == ["second", "third"]
    # Another configuration is an order, and the former one afterwards is one too.
    for artifact in ("third", "first"):
        async with server(artifact=artifact) as client:
            assert await loaded(client) == [artifact]
            await change(client, f"{artifact}/activate")
    async with server() as client:
        await change(client, "second/activate")
    async with server(deployment="another") as client:
        assert await loaded(client) == ["first"]
    shutil.rmtree(root / "second")
    for _ in range(2):  # and that it cannot be served here is no change that others are to follow
        caplog.clear()
        async with server() as client:
            assert await loaded(client) == ["first"]
        assert "an artifact that was served cannot be any more: ArtifactNotFoundError" in caplog.text


def of(active: str, **loaded: str) -> Served:
    return Served(configured="a", active=active, loaded=loaded)


@pytest.mark.parametrize(
    ("kept", "before", "now", "after"),
    [
        # One server activated b, while another one taught a: neither undoes the other's.
        (of("b", a="1", b="1"), of("a", a="1"), of("a", a="2"), of("b", a="2", b="1")),
        (of("a", a="2"), of("a", a="1"), of("b", a="1", b="1"), of("b", a="2", b="1")),
        # One unloaded what the other one never had loaded, or has activated since.
        (of("a", a="1", c="1"), of("a", a="1", b="1"), of("a", a="1"), of("a", a="1", c="1")),
        (of("b", a="1", b="1"), of("a", a="1", b="1"), of("a", a="1"), of("b", a="1", b="1")),
        # A server that begins anew keeps nothing of others.
        (of("b", a="1", b="1"), None, of("c", c="1"), of("c", c="1")),
    ],
)
async def test_changes_of_two_servers_come_together(
    kept: Served, before: Served | None, now: Served, after: Served
) -> None:
    assert kept_after(kept, before, now) == after
    assert kept_after(after, before, now) == after
