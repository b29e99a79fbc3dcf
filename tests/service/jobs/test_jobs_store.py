"""The database of jobs: older ones open, removing is done in small steps, and a kill between them loses nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from test_jobs_folder import FIRST_DDL

from service.errors import JobsUnavailableError
from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.evaluate import MeasureOptions
from service.jobs.records import About, Job
from service.jobs.store import ScoredRow, Store
from service.jobs.sums import Sums

ROWS = 20_000
#: What the log may come to, in bytes: about a megabyte, whatever the job's size.
MOST_LOG_BYTES = 1_200_000
LINE = {"laplace": ([0.123456789, 0.876543211], 0.25), "map": ([0.123456789, 0.876543211], None)}


def new_job(name: str = "a" * 32, rows: int = ROWS) -> Job:
    artifact = ArtifactRef(name="fake", digest="sha256:fake", base_model="tiny", quantization="none")
    about = About(
        artifact=artifact, labels=("n", "p"), options=MeasureOptions(), rows=rows, tokens=4 * rows, created_at=1e9
    )
    return Job(name, "ann", None, about)


def fill(store: Store, number: int, rows: int = ROWS, bad: int = 0) -> None:
    """Put a job's rows on disk as a server does; every one of ``bad`` rows has no answer."""
    for first in range(0, rows, 250):
        numbers = range(first, min(rows, first + 250))
        without = {row: "unscorable_input" for row in numbers if row < bad}
        scored = [ScoredRow(row, row % 2, LINE) for row in numbers if row not in without]
        assert store.add_rows(
            number, first, len(numbers), scored=scored, bad=without, sums=Sums(), input_offset=first, started_at=1e9
        )


def count(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_removing_a_large_job_keeps_the_log_small_and_gives_the_disk_back(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = Store(path)
    log = path.with_name("jobs.sqlite-wal")
    sizes: list[int] = []
    # Called at the beginning of each statement, so also between a transaction and the next.
    store._db.set_trace_callback(lambda statement: sizes.append(log.stat().st_size))
    number = store.add(new_job())
    fill(store, number, bad=3000)
    filled = path.stat().st_size
    assert filled > 1_500_000
    assert store.end(number, "done", finished_at=1e9, result="{}")
    assert store.result(number) == "{}"
    steps = 0
    while store.sweep():
        steps += 1
        # Between two steps anything else can be written.
        if steps == 5:
            other = store.add(new_job("b" * 32, rows=250))
            fill(store, other, 250)
    assert steps > ROWS / 256
    assert [row.row for row in store.rows(other, -1, 1000)] == list(range(250))
    assert store.rows(number, -1, 10) == []
    assert len(store.bad_rows(number)) == 3000, "what could not be scored is part of what is kept"
    store.remove([number])
    assert [job.number for job in store.jobs()] == [other]
    while store.sweep():
        pass
    assert store.bad_rows(number) == []
    assert max(sizes) < MOST_LOG_BYTES
    assert log.stat().st_size == 0
    store.close()
    assert path.stat().st_size < filled / 4


def test_what_a_kill_leaves_of_a_removal_goes_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = Store(path)
    ended, removed, open_job = (store.add(new_job(c * 32, rows=1000)) for c in "abc")
    for number in (ended, removed, open_job):
        fill(store, number, 1000, bad=10)
    store.end(ended, "done", finished_at=1e9, result="{}")
    store.end(removed, "cancelled", finished_at=1e9)
    store.remove([removed])
    assert store.sweep()
    store._db.close()  # no checkpoint of ours, no more sweeping
    assert count(path, "rows") > 990
    store = Store(path)
    assert [(job.number, job.status, job.rows_bad) for job in store.jobs()] == [
        (ended, "done", 10),
        (open_job, "queued", 10),
    ]
    while store.sweep():
        pass
    store.close()
    assert count(path, "rows") == 990
    assert count(path, "bad_rows") == 20


def test_an_older_database_opens_and_nothing_in_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    job = new_job(rows=2)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(FIRST_DDL)
        insert = "INSERT INTO jobs (id, owner, about, status, rows_done, sums, result) VALUES (?, 'ann', ?, ?, ?, ?, ?)"
        about, sums = job.about.model_dump_json(), Sums().model_dump_json()
        db.execute(insert, ("a" * 32, about, "queued", 1, sums, None))
        db.execute(insert, ("b" * 32, about, "done", 2, sums, '{"kept": 1}'))
        db.execute("INSERT INTO rows VALUES (1, 0, 1, '{\"map\": [[0.5, 0.5], null]}')")
        db.commit()
    for _ in range(2):
        store = Store(path)
        first, second = store.jobs()
        assert (first.status, first.rows_done, first.rows_bad, first.absent_s) == ("queued", 1, 0, 0.0)
        assert store.rows(first.number, -1, 10) == [ScoredRow(0, 1, {"map": [[0.5, 0.5], None]})]  # type: ignore[dict-item]
        assert store.result(second.number) == '{"kept": 1}'
        assert store.bad_rows(second.number) == []
        store.set_absent(first.number, 0.0)
        store.close()


#: What the second version added to the first; never to be changed.
SECOND_DDL = """
CREATE TABLE bad_rows (
    job INTEGER NOT NULL,
    row INTEGER NOT NULL,
    code TEXT NOT NULL,
    PRIMARY KEY (job, row)
) STRICT, WITHOUT ROWID;
ALTER TABLE jobs ADD COLUMN absent_s REAL NOT NULL DEFAULT 0;
PRAGMA user_version = 2;
"""


def test_a_second_versions_database_opens_and_keeps_what_is_under_way_from_now_on(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    job = new_job(rows=9)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(FIRST_DDL)
        db.executescript(SECOND_DDL)
        insert = "INSERT INTO jobs (id, owner, about, rows_done, sums, absent_s) VALUES (?, 'ann', ?, 2, ?, 7.5)"
        db.execute(insert, ("a" * 32, job.about.model_dump_json(), Sums().model_dump_json()))
        db.execute("INSERT INTO rows VALUES (1, 0, 1, '{\"map\": [[0.5, 0.5], null]}')")
        db.execute("INSERT INTO bad_rows VALUES (1, 1, 'device_memory')")
        db.commit()
    store = Store(path)
    (opened,) = store.jobs()
    assert (opened.rows_done, opened.bad_counts, opened.absent_s, opened.begun) == (2, {"device_memory": 1}, 7.5, {})
    assert store.rows(1, -1, 10) == [ScoredRow(0, 1, {"map": [[0.5, 0.5], None]})]  # type: ignore[dict-item]
    store.set_begun(1, (2, 3), 1)
    store.set_begun(1, (2, 5), 0)
    store.set_begun(1, (5, 9), 0)
    store.close()
    store = Store(path)
    assert store.jobs()[0].begun == {(2, 3): 1, (2, 5): 0, (5, 9): 0}
    common = {"sums": Sums(), "input_offset": 0, "started_at": 1e9}
    assert store.add_rows(1, 2, 1, scored=[], bad={2: "device_fault"}, **common)  # type: ignore[arg-type]
    assert store.jobs()[0].begun == {(2, 5): 0, (5, 9): 0}
    store.set_begun(1, (5, 9), None)
    assert store.jobs()[0].begun == {(2, 5): 0}
    assert store.end(1, "cancelled", finished_at=1e9)
    store.set_begun(1, (3, 5), 0)
    assert store.jobs()[0].begun == {}
    store.close()


def test_a_newer_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    Store(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(JobsUnavailableError, match="newer server"):
        Store(path)


def test_rows_go_to_disk_once_and_in_order(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    number = store.add(new_job(rows=10))

    def add(first: int, rows: range, bad: dict[int, str]) -> bool:
        scored = [ScoredRow(row, 0, LINE) for row in rows if row not in bad]
        common = {"sums": Sums(), "input_offset": 0, "started_at": 1e9}
        return store.add_rows(number, first, len(rows), scored=scored, bad=bad, **common)  # type: ignore[arg-type]

    assert not add(3, range(3, 6), {})
    assert add(0, range(3), {1: "internal_error"})
    assert not add(0, range(3), {})
    assert add(3, range(3, 6), {3: "device_memory", 4: "device_memory", 5: "device_memory"})
    assert [row.row for row in store.rows(number, -1, 10)] == [0, 2]
    assert [row.row for row in store.rows(number, 0, 10)] == [2]
    assert store.bad_rows(number) == [(1, "internal_error"), *((row, "device_memory") for row in (3, 4, 5))]
    (job,) = store.jobs()
    assert job.bad_counts == {"internal_error": 1, "device_memory": 3}
    assert store.end(number, "failed", finished_at=1e9, error={}, bad={5: "x", 6: "device_memory"})
    assert not store.end(number, "done", finished_at=1e9)
    assert not add(6, range(6, 9), {})
    assert store.bad_rows(number)[-2:] == [(5, "device_memory"), (6, "device_memory")]
    store.close()
