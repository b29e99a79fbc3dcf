"""Changes of artifacts on servers that are processes: asked for at another one, and after their server's end."""

from __future__ import annotations

import signal

import httpx
import pytest
import sqlalchemy as sa
from job_servers import Servers
from server_process import Process, fake_artifacts, until
from serving import code

pytestmark = pytest.mark.process


def begun(client: httpx.Client) -> str:
    """Begin a load that does not end, and return where its status is."""
    asked = client.post("/artifacts/stuck/load", headers={"idempotency-key": "k"})
    assert (asked.status_code, asked.json()["status"]) == (202, "queued")
    return asked.headers["location"]


def gone(process: Process, where: str) -> bool:
    with process.client() as client:
        change = client.get(where).json()
    return (change["status"], (change["error"] or {}).get("code")) == ("failed", "server_gone")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_change_whose_server_ends_has_failed_at_the_next_start(servers: Servers, how: signal.Signals) -> None:
    fake_artifacts(servers.gate.parent, "fake", "stuck")
    flags = ("--drain-delay-s", "0", "--drain-s", "0", "--leave-s", "1")
    first = servers.start(*flags)
    with first.client() as client:
        where = begun(client)
        first.popen.send_signal(how)
        first.left()
    second = servers.start(*flags)
    assert gone(second, where)
    with second.client() as client:
        # It happened once: the same key begins nothing.
        again = client.post("/artifacts/stuck/load", headers={"idempotency-key": "k"})
        assert (again.headers["location"], again.json()["error"]["code"]) == (where, "server_gone")
        assert code(client.get(f"{where}0")) == (404, "change_not_found")


def test_a_change_is_told_by_every_server_that_shares_the_database(servers: Servers, url: str) -> None:
    fake_artifacts(servers.gate.parent, "fake", "stuck")
    servers.environment["LAPLORA_JOBS_URL"] = url
    flags = ("--job-lease-s", "1", "--job-look-s", "0.1")
    first, second = servers.start(*flags), servers.start(*flags)
    with first.client() as one, second.client() as other:
        where = begun(one)
        assert other.get(where).json() == one.get(where).json()
        assert begun(other) == where
        assert code(other.post("/artifacts/fake/load", headers={"idempotency-key": "k"})) == (
            409,
            "idempotency_conflict",
        )
        # The other one can change meanwhile.
        loaded = other.post("/artifacts/fake/load").headers["location"]
        until(lambda: one.get(loaded).json()["status"] == "succeeded")
        # What a newer server keeps beside what is known here is left out.
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as connection:
            newer = """UPDATE laplora_changes SET record = replace(record, '"unloaded":', '"newer":1,"unloaded":')"""
            assert connection.exec_driver_sql(newer).rowcount == 2
        engine.dispose()
        assert one.get(loaded).json() == other.get(loaded).json()
        assert [change["id"] for change in one.get("/changes").json()["changes"]] == [
            change["id"] for change in other.get("/changes").json()["changes"]
        ]
        first.popen.kill()
        first.left()
        until(lambda: gone(second, where))
