"""Whoever has lost a job writes nothing for it any more, at no place that writes, whenever the claim changes hands."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from server_process import until
from stored_jobs import LINE, Stores, add, claimed, end, let_die, new_job

from service.errors import JobsUnavailableError
from service.jobs.store.claims import ClaimLostError, Claims
from service.jobs.store.database import Database
from service.jobs.store.job_tables import JobTables
from service.jobs.store.records import ScoredRow, Sums
from service.jobs.store.schema import BAD_ROWS, BEGUN, JOBS, ROWS

ADDED: dict[str, Any] = {"scored": [ScoredRow(2, 0, LINE, answer="{}")], "bad": {3: "device_memory"}}
ADDED |= {"sums": Sums(rows=3), "input_offset": 40, "started_at": 1.0}
#: Every write that names a claim, of a job of which two rows are over.
WRITES: dict[str, Callable[[JobTables, int, int], Any]] = {
    "add_rows": lambda store, job, fence: store.add_rows(job, (2, 4), fence=fence, **ADDED),
    "set_begun": lambda store, job, fence: store.set_begun(job, {(2, 4): 1}, fence=fence),
    "set_absent": lambda store, job, fence: store.set_absent(job, 7.0, fence=fence),
    "set_paused": lambda store, job, fence: store.set_paused(job, {"code": "x"}, fence=fence),
    "end": lambda store, job, fence: end(store, job, "done", fence=fence, result='"stale"', bad={5: "x"}),
    "release": lambda store, job, fence: store.claims.release(job, fence),
    "leave_job": lambda store, job, fence: store.claims.leave_job(job, {"code": "x"}, fence=fence),
}
#: Of these a lost claim is no error: what they keep is worth nothing then.
SILENT = {"set_absent", "release"}


def begun(store: JobTables) -> int:
    """Return a job that server ``a`` has claimed, for the first time, and done two rows of."""
    number = claimed(store, new_job())
    assert add(store, number, range(2))
    return number


def outcome(write: Callable[[], Any]) -> Any:
    """Return what a write returns, or that the claim was lost."""
    try:
        return write()
    except ClaimLostError as error:
        return error


def content(store: JobTables) -> dict[str, list[Any]]:
    """Return everything that the database has of jobs."""
    with store.database.transaction() as db:
        return {
            table.name: [tuple(row) for row in db.execute(sa.select(table).order_by(*table.primary_key.columns))]
            for table in (JOBS, ROWS, BAD_ROWS, BEGUN)
        }


def test_every_write_that_names_a_claim_is_tried_here() -> None:
    named = {
        name
        for kind in (JobTables, Claims)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if "fence" in inspect.signature(method).parameters
    }
    assert named == set(WRITES)


@pytest.mark.parametrize("how", ["taken over", "taken back", "left", "done", "cancelled", "removed"])
def test_a_write_under_a_lost_claim_changes_nothing(how: str, database: Stores) -> None:
    a, b = database
    number = begun(a)
    if how == "taken over":
        let_die(b)
        assert b.claims.claim("b", 1) == [number]
    elif how == "taken back":
        # It let go of it and has it again: what was under way before is as stale as another server's.
        a.claims.release(number, 1)
        assert a.claims.claim("a", 1) == [number]
    elif how == "left":
        a.claims.leave_job(number, {"code": "artifact_changed"}, fence=1)
        let_die(b)
        assert b.claims.claim("b", 0, most_left=1) == [number]
    elif how == "done":
        end(a, number, "done", fence=1, result="{}")
    else:
        end(b, number, "cancelled")
        if how == "removed":
            b.remove([number])
    before = content(b)
    for name, write in WRITES.items():
        told = outcome(lambda: write(a, number, 1))  # noqa: B023
        assert told is None if name in SILENT else isinstance(told, ClaimLostError), name
        assert content(b) == before, name


@contextmanager
def before_commit(store: JobTables, work: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Run work in a thread up to where its transaction is committed, which it is after the block; yield its outcome."""
    reached, go, transaction = threading.Event(), threading.Event(), store.database.transaction

    @contextmanager
    def held() -> Iterator[sa.Connection]:
        with transaction() as db:
            yield db
            reached.set()
            go.wait()

    with ThreadPoolExecutor() as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.database, "transaction", held)
        told = pool.submit(outcome, work)
        try:
            reached.wait()
            yield told
        finally:
            go.set()


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_waits_for_a_claim_is_refused_once_that_is_made(name: str, stores: Stores, url: str) -> None:
    a, b = stores
    number = begun(a)
    let_die(b)
    watcher = Database.at_url(url)
    with ThreadPoolExecutor() as pool, before_commit(b, lambda: b.claims.claim("b", 1)) as claims:
        told = pool.submit(outcome, lambda: WRITES[name](a, number, 1))
        until(lambda: waits_for_a_lock(watcher))
    assert claims.result() == [number]
    assert told.result() is None if name in SILENT else isinstance(told.result(), ClaimLostError)
    (job,) = b.reads.jobs()
    assert (job.server, job.fence, job.rows_done, job.changes) == ("b", 2, 2, 1)
    watcher.close()


def waits_for_a_lock(database: Database) -> bool:
    with database.transaction() as db:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return int(db.exec_driver_sql(waiting).scalar_one()) > 0


@pytest.mark.parametrize("name", WRITES)
def test_no_claim_comes_in_the_middle_of_a_write(name: str, stores: Stores) -> None:
    """The job is passed over until it is on disk, and who claims it then knows of it."""
    a, b = stores
    number = begun(a)
    let_die(b)
    before = content(b)
    with before_commit(a, lambda: WRITES[name](a, number, 1)):
        assert b.claims.claim("b", 1, most_left=1) == []
    assert content(b) != before, "else the tests above could refuse whatever they are given"
    assert b.claims.claim("b", 1, most_left=1) == ([] if name == "end" else [number])
    assert [job.rows_done for job in b.reads.jobs()] == [4 if name == "add_rows" else 2]


def test_a_server_that_hangs_in_a_write_keeps_no_job_from_the_others(url: str) -> None:
    hung, other = JobTables(Database.at_url(url, timeout_s=1)), JobTables(Database.at_url(url))
    number = begun(other)
    let_die(other)

    def hang() -> None:
        with hung.database.transaction() as db:
            db.execute(sa.update(JOBS).where(JOBS.c.number == number).values(rows_done=4))
            assert other.claims.claim("b", 1) == []
            # Nothing more comes of it: the database ends its transaction.
            until(lambda: other.claims.claim("b", 1) == [number])
            db.execute(sa.select(JOBS.c.number))

    with pytest.raises(JobsUnavailableError):
        hang()
    # It goes on with a new connection.
    assert hung.reads.jobs()[0].server == "b"
    assert [job.rows_done for job in other.reads.jobs()] == [2]
    for store in (hung, other):
        store.close()
