"""Jobs in a real PostgreSQL that servers share: claims, and a killed server, every row answered once."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from job_calls import holding, poisoned
from job_servers import Servers, check_whole, job_until, submit_to
from postgres import GUEST
from server_process import until
from stored_jobs import LEASE_S, Stores, kept_rows, new_job

from service.errors import IdempotencyConflictError, JobsUnavailableError
from service.jobs.store.database import Database
from service.jobs.store.job_tables import JobTables
from service.jobs.store.schema import FORMAT


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call all of them in threads that begin at the same time; return their results."""
    begin = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        begin.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_servers_that_claim_at_once_share_the_jobs_and_none_is_claimed_or_sent_twice(stores: Stores) -> None:
    numbers = [stores[0].add(new_job(f"{i:032d}", key="k" if i == 7 else None)) for i in range(40)]
    with pytest.raises(IdempotencyConflictError):
        stores[1].add(new_job("a" * 32, key="k"))

    def claim(store: JobTables, name: str) -> list[int]:
        store.claims.hear(name, alone=False, lease_s=LEASE_S)
        got: list[int] = []
        while taken := store.claims.claim(name, 3, without=got):
            got += taken
        return got

    got = at_once(lambda: claim(stores[0], "a"), lambda: claim(stores[1], "b"))
    assert sorted([*got[0], *got[1]]) == numbers == [job.number for job in stores[1].reads.jobs()]


def test_servers_that_start_at_once_make_the_tables_once_and_those_of_others_are_left_alone(url: str) -> None:
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    names = ("jobs", "rows", "bad_rows", "begun", "servers")
    with engine.begin() as connection:
        for name in names:
            connection.exec_driver_sql(f"CREATE TABLE {name} (theirs TEXT)")
    opened = at_once(*[lambda: Database.at_url(url)] * 3)
    store = JobTables(opened[0])
    store.add(new_job())
    with engine.begin() as connection:
        for name in names:
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one() == 0
        connection.exec_driver_sql("DROP TABLE laplora_jobs")
        connection.exec_driver_sql("UPDATE laplora_jobs_format SET format = 99")
    # What no other try carries out is told of by name, and no value is in the message.
    with pytest.raises(sa.exc.ProgrammingError) as told:
        store.add(new_job(key="private"))
    assert "private" not in str(told.value)
    with pytest.raises(JobsUnavailableError, match=f"format 99, this server reads format {FORMAT}"):
        Database.at_url(url)
    for database in opened:
        database.close()
    engine.dispose()


def test_a_killed_servers_jobs_go_on_with_the_other_and_every_row_is_answered_once(
    servers: Servers, url: str, tmp_path: Path
) -> None:
    count, bad = 240, (3, 130, 239)
    items = [poisoned(count, *bad) for _ in range(4)]
    # However late the kill comes, one of the jobs has not ended.
    items[-1] = holding(items[-1], {200: 99_701})
    poison = ",".join(str(90_500 + number) for number in bad)
    flags = ["--batch-tokens", "40", "--max-inputs", "1000", "--max-queue-rows", "3000", "--job-lease-s", "2"]
    servers.environment["LAPLORA_JOBS_URL"] = url
    with ExitStack() as stack:
        first, second = [servers.start(*flags, poison=poison) for _ in range(2)]
        clients = [stack.enter_context(process.client()) for process in (first, second)]
        servers.shut()
        ids = [submit_to(clients[i % 2], of_one) for i, of_one in enumerate(items)]
        # Both know of all, wherever they were sent, and each has its share.
        for client in clients:
            assert [job["id"] for job in client.get("/evaluate/jobs").json()["jobs"]] == ids[::-1]
        store = JobTables(Database.at_url(url))
        until(lambda: list(Counter(job.server for job in store.reads.jobs() if job.server).values()) == [2, 2])
        servers.open()
        for job_id in ids:
            job_until(clients[1], job_id, lambda job: job["rows_done"] > 20, pause_s=0.1)
        killed_at = {job.id: job.rows_done for job in store.reads.jobs()}
        first.popen.send_signal(signal.SIGKILL)
        first.popen.wait()
        assert any(done < count for done in killed_at.values())
        servers.let_pass(99_701)
        for job_id, of_one in zip(ids, items, strict=True):
            check_whole(clients[1], job_id, of_one, bad)
        for job in store.reads.jobs():
            assert kept_rows(store, job.number) == [row for row in range(count) if row not in bad]
        store.close()


def test_the_password_can_be_in_a_file_and_is_in_no_message(url: str, tmp_path: Path) -> None:
    for bad in ("postgresql://user:secret@127.0.0.1:1/none", "mysql://user:secret@host/x", "postgresql://u:secret@[/x"):
        with pytest.raises(JobsUnavailableError) as told:
            Database.at_url(bad)
        assert "secret" not in str(told.value), bad
    admin, file, address = Database.at_url(url), tmp_path / "password", url.replace("laplora@", f"{GUEST}@")
    with admin.transaction() as db:
        db.exec_driver_sql(f"CREATE ROLE {GUEST} LOGIN SUPERUSER PASSWORD 'it@s a secret/'")
    try:
        file.write_text("it@s a secret/\n")
        Database.at_url(address, file).close()
        file.write_text("another")
        with pytest.raises(JobsUnavailableError, match="does not answer"):
            Database.at_url(address, file)
        with pytest.raises(JobsUnavailableError, match="jobs_password_file cannot be read") as told:
            Database.at_url(address, tmp_path / "nowhere")
        assert "nowhere" not in str(told.value)
    finally:
        with admin.transaction() as db:
            db.exec_driver_sql(f"DROP ROLE {GUEST}")
        admin.close()
