"""The database of jobs: rows once and in order, removing in small steps, and a kill between them loses nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from stored_jobs import add, claimed, end, kept_rows, new_job

from laplora.answers.labels import LabelNames
from service.errors import JobsUnavailableError
from service.jobs.store.claims import ClaimLostError
from service.jobs.store.database import Database
from service.jobs.store.job_tables import JobTables
from service.jobs.store.records import ScoredRow, Sums
from service.jobs.store.schema import FORMAT

Stores = tuple[JobTables, JobTables]
ROWS = 20_000
#: What the log may come to, in bytes: about a megabyte, whatever the job's size.
MOST_LOG_BYTES = 1_200_000


def opened(path: Path) -> JobTables:
    return JobTables(Database.in_file(path / "jobs.sqlite"))


def fill(store: JobTables, number: int, rows: int = ROWS, bad: int = 0) -> None:
    """Put a job's rows on disk as a server does; every one of ``bad`` rows has no answer."""
    for first in range(0, rows, 250):
        numbers = range(first, min(rows, first + 250))
        assert add(store, number, numbers, {row: "unscorable_input" for row in numbers if row < bad})


def test_removing_a_large_job_keeps_the_log_small_and_gives_the_disk_back(tmp_path: Path) -> None:
    store = opened(tmp_path)
    path, log = tmp_path / "jobs.sqlite", tmp_path / "jobs.sqlite-wal"
    sizes: list[int] = []
    # Called at the beginning of each statement, so also between a transaction and the next.
    store.database.raw.set_trace_callback(lambda statement: sizes.append(log.stat().st_size))
    number = claimed(store, new_job())
    fill(store, number, bad=3000)
    filled = path.stat().st_size
    assert filled > 1_500_000
    end(store, number, "done", result="{}")
    assert store.reads.result(number) == "{}"
    steps = 0
    while store.reads.sweep():
        steps += 1
        # Between two steps anything else can be written.
        if steps == 5:
            other = claimed(store, new_job("b" * 32))
            fill(store, other, 250)
    assert steps > ROWS / 256
    assert kept_rows(store, other) == list(range(250))
    assert kept_rows(store, number) == []
    assert len(store.reads.bad_rows(number)) == 3000, "what could not be scored is part of what is kept"
    store.remove([number])
    assert [job.number for job in store.reads.jobs()] == [other]
    while store.reads.sweep():
        pass
    assert store.reads.bad_rows(number) == []
    assert max(sizes) < MOST_LOG_BYTES
    assert log.stat().st_size == 0
    store.close()
    assert path.stat().st_size < filled / 4


def test_what_a_kill_leaves_of_a_removal_goes_at_the_next_start(tmp_path: Path) -> None:
    def count(table: str) -> int:
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as db:
            return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    store = opened(tmp_path)
    ended, removed, open_job = (claimed(store, new_job(c * 32)) for c in "abc")
    for number in (ended, removed, open_job):
        fill(store, number, 1000, bad=10)
    end(store, ended, "done", result="{}")
    end(store, removed, "cancelled")
    store.remove([removed])
    assert store.reads.sweep()
    store.database.raw.close()  # no checkpoint of ours, no more sweeping
    assert count("laplora_rows") > 990
    store = opened(tmp_path)
    assert [(job.number, job.status, job.rows_bad) for job in store.reads.jobs()] == [
        (ended, "done", 10),
        (open_job, "queued", 10),
    ]
    while store.reads.sweep():
        pass
    store.close()
    assert (count("laplora_rows"), count("laplora_bad_rows")) == (990, 20)


@pytest.mark.parametrize("version", [0, FORMAT - 1, 99])
def test_a_database_of_another_format_is_refused_by_name_and_left_alone(version: int, tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE laplora_jobs (anything)")
        db.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(JobsUnavailableError, match=f"format {version}, this server reads format {FORMAT}") as told:
        opened(tmp_path)
    # The uploads of its jobs stay: nobody else removes them.
    assert "delete the jobs folder" in str(told.value)
    assert path.read_bytes() == before


def test_rows_go_to_disk_once_and_in_order_and_leave_nothing_when_they_are_removed(database: Stores) -> None:
    store, _ = database
    number = claimed(store, new_job(rows=10))
    assert not add(store, number, range(3, 6))
    assert add(store, number, range(3), {1: "internal_error"})
    # Once more, as after an answer that was lost: nothing is kept twice, and a new claim knows how far it is.
    assert not add(store, number, range(3))
    assert add(store, number, range(3, 6), dict.fromkeys(range(3, 6), "device_memory"))
    assert kept_rows(store, number) == [0, 2]
    assert [row.row for row in store.reads.rows(number, 0, 10)] == [2]
    end(store, number, "failed", error={"code": "x"}, bad={5: "x", 6: "device_memory"})
    with pytest.raises(ClaimLostError):
        end(store, number, "done")
    bad = [(1, "internal_error"), *((row, "device_memory") for row in (3, 4, 5, 6))]
    assert store.reads.bad_rows(number) == bad
    assert [(job.status, job.bad_counts.total()) for job in store.reads.jobs()] == [("failed", 5)]
    store.remove([number])
    while store.reads.sweep():
        pass
    assert (store.reads.jobs(), kept_rows(store, number), store.reads.bad_rows(number)) == ([], [], [])


def test_unfamiliar_rows_are_counted_over_chunks() -> None:
    chunks: list[list[bool | None]]
    for chunks, share in (
        ([[False, False], [True], [False, True]], 2 / 5),
        ([[True], [True, None]], None),  # not told of every row
        ([], None),
    ):
        sums = Sums()
        for flags in chunks:
            scored = [ScoredRow(row, 0, {"map": ([0.6, 0.4], None)}, flag) for row, flag in enumerate(flags)]
            added = sums.plus(scored, labels=LabelNames(("n", "p"), several=False), bins=5)
            sums = Sums.model_validate_json(added.model_dump_json())
        assert (sums.rows, sums.unfamiliar_share) == (sum(map(len, chunks)), share)
