"""A PostgreSQL whose answers are lost, that answers nothing, or that is behind PgBouncer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from job_calls import JSONL, ServedJobs, lines, refused, rows, serve
from pgbouncer import pgbouncer
from stored_jobs import kept_rows
from tcp_proxy import TcpProxy, tcp_proxy

from service.jobs.store.database import Database
from service.jobs.store.job_tables import JobTables
from service.jobs.store.schema import DISCARDS

pytestmark = pytest.mark.anyio
COUNT = 60


@pytest.fixture
def proxy(url: str) -> Iterator[TcpProxy]:
    with tcp_proxy(sa.make_url(url).port or 0) as proxy:
        yield proxy


@pytest.fixture
def start(url: str, proxy: TcpProxy, tmp_path: Path) -> Any:
    """Return what starts a server whose PostgreSQL is behind the proxy."""
    through = sa.make_url(url).set(port=proxy.port).render_as_string()
    return partial(serve, jobs_url=through, jobs_dir=tmp_path / "common", batch_tokens=40, job_look_s=0.02)


async def nothing_left(served: ServedJobs, store: JobTables, number: int, folder: Path) -> None:
    def left() -> list[Any]:
        with store.database.transaction() as db:
            listed = list(db.execute(sa.select(DISCARDS.c.id)).scalars())
        return [
            *store.reads.jobs(),
            *kept_rows(store, number),
            *listed,
            *folder.rglob("*.jsonl"),
            *folder.rglob("*.part"),
        ]

    await served.until(lambda: not left())


@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO laplora_discards", "INSERT INTO laplora_jobs ", "SET server=", "INSERT INTO laplora_rows",
     "SET status=", "DELETE FROM laplora_jobs "],
)  # fmt: skip
async def test_an_answer_to_a_commit_that_is_lost_breaks_no_job(
    statement: str, url: str, proxy: TcpProxy, start: Any, tmp_path: Path
) -> None:
    store, items = JobTables(Database.at_url(url)), rows(COUNT)
    async with start() as served:
        proxy.loses = statement.encode()
        sent = [await served.post(lines(items), **{"idempotency-key": "k"}) for _ in range(2)]
        assert [answer.status_code for answer in sent] == [202, 202], sent[0].text
        (job_id,) = {answer.json()["id"] for answer in sent}
        done = await served.ended(job_id)
        assert (done["status"], done["result"]["rows"]) == ("done", COUNT)
        assert [one["input"] for one in await served.answers(job_id)] == items
        (job,) = store.reads.jobs()
        assert kept_rows(store, job.number) == list(range(COUNT))
        assert await served.delete(job_id) == "removed"
        assert proxy.loses == b"", "nothing was lost"
        await nothing_left(served, store, job.number, tmp_path)
    store.close()


async def test_an_upload_whose_job_the_database_has_stays_though_nobody_was_told(
    url: str, proxy: TcpProxy, start: Any
) -> None:
    async with start() as served:
        proxy.loses = b"INSERT INTO laplora_jobs "
        add, disk = served.state.jobs.ledger.disk.tables.add, served.state.jobs.ledger.disk

        def away(*arguments: Any) -> Any:
            try:
                return add(*arguments)
            finally:
                proxy.go_away()

        disk.tables.add = away
        refused(await served.post(lines(rows(COUNT)), **{"idempotency-key": "k"}), 503, "jobs_unavailable")
        disk.tables.add = add
        proxy.come_back()
        await served.until(lambda: bool(served.jobs()))
        again = await served.post(lines(rows(COUNT)), **{"idempotency-key": "k"})
        assert (again.status_code, [again.json()["id"]]) == (202, served.jobs())
        assert (await served.ended(again.json()["id"]))["result"]["rows"] == COUNT


async def test_a_database_that_swallows_everything_is_503_at_every_route_and_jobs_go_on_after_it(
    url: str, proxy: TcpProxy, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(jobs_timeout_s=0.2) as served:
        done = await served.done(rows(4))
        served.predictor.hold()
        job_id = await served.submit(rows(COUNT))
        await served.until(served.predictor.entered.is_set)
        proxy.swallows = True
        served.predictor.released.set()
        calls = [("GET", ""), ("POST", ""), ("GET", f"/{done}"), ("DELETE", f"/{done}"), ("POST", f"/{done}/cancel"),
                 ("GET", f"/{done}/results"), ("GET", f"/{done}/report")]  # fmt: skip
        for answer in await asyncio.gather(
            *(
                served.client.request(method, f"/evaluate/jobs{path}", content=lines(rows(2)), headers=JSONL)
                for method, path in calls * 3
            )
        ):
            refused(answer, 503, "jobs_unavailable")
            assert int(answer.headers["retry-after"]) > 0
        assert (await served.predict("a")).status_code == 200
        proxy.swallows = False
        job = served.held(job_id)
        await served.until(lambda: job.finished)
        assert (await served.get(job_id))["result"]["rows"] == COUNT
        assert len(await served.answers(job_id)) == COUNT
    assert not [record for record in caplog.records if getattr(record, "event", "") == "crash"]


async def test_servers_share_jobs_through_a_pgbouncer_that_keeps_no_session(url: str, tmp_path: Path) -> None:
    with pgbouncer(url) as pooled:
        start = partial(serve, jobs_url=pooled, jobs_dir=tmp_path / "common", batch_tokens=40, job_look_s=0.02)
        async with start() as first, start() as second:
            ids = [await served.submit(rows(COUNT)) for served in (first, second) * 3]
            for job_id in ids:
                await second.until(lambda: job_id in second.jobs())  # noqa: B023
                for served in (first, second):
                    assert (await served.ended(job_id))["result"]["rows"] == COUNT
            assert await second.delete(ids[0]) == "removed"
            await first.until(lambda: ids[0] not in first.jobs())
        bounded = Database.at_url(pooled, timeout_s=7)
        with bounded.transaction() as db:
            assert db.exec_driver_sql("SHOW statement_timeout").scalar_one() == "7s"
        bounded.close()
        # The sessions behind it are as they were.
        other = sa.create_engine(pooled.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
        with other.connect() as db:
            assert db.exec_driver_sql("SHOW statement_timeout").scalar_one() == "0"
        other.dispose()
