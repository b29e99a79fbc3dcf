"""What jobs leave on disk: the folder, in which nobody else's file is touched, and the database in it."""

from __future__ import annotations

import os
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from job_calls import JSONL, refused, rows, serve
from sqlalchemy import Engine, event, insert
from stored_jobs import Stores, add, claimed, end, kept_rows, new_job

from service.changes import table
from service.errors import JobsUnavailableError
from service.jobs.store import schema
from service.jobs.store.claims import ClaimLostError
from service.jobs.store.database import Database
from service.jobs.store.folder import ForeignFilesError, JobsFolder
from service.jobs.store.job_tables import JobTables
from service.jobs.store.schema import FORMAT

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


def test_a_change_whose_answer_was_lost_is_itself_and_no_other_one_without_a_key(database: Stores) -> None:
    about: dict[str, Any] = {"kind": "load", "artifact": "a", "server": "s", "owner": "ann", "key": None}
    earlier, change = (table.Change(id=name, asked="", created_at=1e9, **about) for name in "xy")
    for one in (earlier, change, change):
        assert table.add(database[0].database, one, 60.0, 9).id == one.id


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


def test_a_sweep_and_a_removal_ask_as_much_of_four_hundred_jobs_as_of_two(database: Stores) -> None:
    store, _ = database
    statements, counts = list[str](), list[int]()

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    for count in (2, 400):
        numbers = [store.add(new_job(uuid.uuid4().hex, keep_rows=True)) for _ in range(count)]
        with store.database.transaction() as db:
            for table, more in ((schema.ROWS, {"truth": "0", "methods": "{}"}), (schema.BAD_ROWS, {"code": "x"})):
                db.execute(insert(table), [{"job": number, "row": 0, **more} for number in numbers])
        statements.clear()
        assert not store.reads.sweep()
        store.remove(numbers[1:])
        counts.append(len(statements))
        # What is removed is found between jobs that need theirs.
        assert store.reads.sweep()
        assert kept_rows(store, numbers[1]) == []
        while store.reads.sweep():
            pass
        assert kept_rows(store, numbers[0]) == [0]
    event.remove(Engine, "before_cursor_execute", note)
    assert counts[0] == counts[1] < 20, "each statement may be a round trip"


@pytest.mark.anyio
async def test_what_a_newer_server_wrote_is_read_and_kept_and_what_an_older_one_has_not_is_made() -> None:
    async with serve(batch_tokens=40) as served:
        served.predictor.hold()
        job_id, file = await served.submit(rows(60)), served.folder() / "jobs.sqlite"
        await served.until(served.predictor.entered.is_set)

    def edit(column: str, *places: str) -> None:
        changes = ", ".join(f"'$.{place}newer', 7" for place in places)
        with closing(sqlite3.connect(file)) as db, db:
            db.execute(f"UPDATE laplora_jobs SET {column} = json_set(coalesce({column}, '{{}}'), {changes})")

    def kept(column: str, place: str) -> Any:
        with closing(sqlite3.connect(file)) as db:
            return db.execute(f"SELECT {column} ->> '$.{place}newer' FROM laplora_jobs").fetchone()[0]

    edit("about", "", "options.", "artifact.")
    edit("sums", "")
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("ALTER TABLE laplora_jobs ADD COLUMN newer TEXT")
        db.execute("DROP TABLE laplora_discards")
    again = {"jobs_dir": served.state.settings.jobs_dir, "batch_tokens": 40}
    async with serve(**again) as served:
        assert (await served.ended(job_id))["result"]["rows"] == 60
    assert (kept("about", ""), kept("sums", "")) == (7, 7)
    edit("result", "", "artifact.", "methods.laplace.", "methods.laplace.reliability[0].")
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("""UPDATE laplora_jobs SET error = '{"code": "x", "message": "y", "newer": 7}'""")
    async with serve(**again) as served:
        assert (await served.get(job_id))["result"]["rows"] == 60
        assert len(await served.answers(job_id)) == 60
        for path in ("", f"/{job_id}/report"):
            assert (await served.client.get(f"/evaluate/jobs{path}")).status_code == 200
        assert await served.delete(job_id) == "removed"


ID = "7f3c1f0ab5a94f6fa7c3d1b2c4e5f607"


async def refused_by(jobs_dir: Path) -> str:
    """Return what a server says of a jobs folder that it leaves alone, with every file in it, and serves without."""

    def contents() -> dict[Path, tuple[bytes, int]]:
        files = [path for path in jobs_dir.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = contents()
    async with serve(jobs_dir=jobs_dir) as served:
        for method, path in (("POST", ""), ("GET", "/x"), ("DELETE", "/x"), ("GET", "")):
            response = await served.client.request(method, f"/evaluate/jobs{path}", content=b"{}", headers=JSONL)
            error = refused(response, 503, "jobs_unavailable")
            assert "retry-after" in response.headers
            assert str(jobs_dir.parent) not in error["message"]
        assert (await served.predict("a")).status_code == 200
    assert contents() == before
    return str(error["message"])


@pytest.mark.parametrize(
    "names",
    [
        ("upload.part", "notes.txt"),
        (f"{ID}.part", "lock"),
        (f"laplora-jobs/{ID}.jsonl",),
        ("laplora-jobs",),
        ("sub/deep/train.jsonl",),
        # What was kept in the folder itself before the first release.
        ("jobs.sqlite", "lock", f"{ID}.jsonl"),
    ],
)
@pytest.mark.anyio
async def test_a_folder_with_foreign_files_is_refused_and_left_alone(
    names: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a user's data\n")
    message = await refused_by(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({name.split("/")[0] for name in names})
    for part in (f"a server's own, got one with other files ({len(names)}, ", "another jobs_dir"):
        assert part in message
    (told,) = [record for record in caplog.records if getattr(record, "event", "") == "jobs_unavailable"]
    # Names are in the log alone: callers do not learn what is on the server's disk.
    shown = [name if name.startswith("laplora-jobs/") else name.split("/")[0] for name in names]
    assert getattr(told, "files") == sorted(shown)  # noqa: B009
    assert not any(Path(name).name in message for name in names)


@pytest.mark.anyio
async def test_a_damaged_database_is_refused_and_left_alone_and_so_is_a_file(tmp_path: Path) -> None:
    JobsFolder(tmp_path).close()
    (tmp_path / "laplora-jobs" / "jobs.sqlite").write_bytes(b"no database" * 1000)
    assert "database is not one" in await refused_by(tmp_path)
    (tmp_path / "file").write_text("")
    await refused_by(tmp_path / "file" / "jobs")


@pytest.mark.anyio
async def test_one_server_at_a_time_has_the_folder() -> None:
    async with serve() as first:
        job_id = await first.done(rows(2))
        async with serve(jobs_dir=first.state.settings.jobs_dir, job_look_s=0.02) as second:
            error = refused(await second.client.get("/evaluate/jobs"), 503, "jobs_unavailable")
            assert "another server process" in error["message"]
            await first.state.jobs.close()
            # As the first one leaves, the second takes over.
            await second.until(lambda: second.state.jobs.ledger.disk.closed is None)
            assert second.jobs() == [job_id]


def test_a_link_in_place_of_the_servers_own_folder_is_not_followed(tmp_path: Path) -> None:
    elsewhere, jobs_dir = tmp_path / "elsewhere", tmp_path / "jobs"
    for folder in (elsewhere, jobs_dir):
        folder.mkdir()
    (elsewhere / "made-by-laplora").touch()
    (jobs_dir / "laplora-jobs").symlink_to(elsewhere)
    with pytest.raises(ForeignFilesError):
        JobsFolder(jobs_dir)
    assert [p.name for p in elsewhere.iterdir()] == ["made-by-laplora"]


def test_a_foreign_file_that_comes_later_is_never_touched(tmp_path: Path) -> None:
    """What a file system puts there is not foreign, nor is a start that was cut off before the marker."""
    (tmp_path / "laplora-jobs").mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".nfs0001").write_text("x")
    folder = JobsFolder(tmp_path)
    (folder.path / ".DS_Store").write_text("x")
    assert sorted(p.name for p in folder.path.iterdir()) == [".DS_Store", "lock", "made-by-laplora"]
    theirs = [tmp_path / "b.jsonl", *(folder.path / name for name in (f"{ID}.jsonl.bak", "train.jsonl", "x.part"))]
    for path in theirs:
        path.write_text("a user's data")
    left = [folder.inputs(ID), folder.upload(ID)]
    for path in left:
        path.write_text("what a crash left")
    folder.discard_others([])
    assert [path.exists() for path in left] == [False, False]
    folder.close()
    with pytest.raises(ForeignFilesError) as error:
        JobsFolder(tmp_path)
    assert error.value.names == [str(path.relative_to(tmp_path)) for path in theirs]
    assert [path.read_text() for path in (tmp_path / ".nfs0001", *theirs)] == ["x", *["a user's data"] * 4]


def test_a_folder_that_another_server_makes_meanwhile_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir

    def late(path: Path) -> list[str]:
        (tmp_path / "laplora-jobs-shared").mkdir(exist_ok=True)
        (tmp_path / "laplora-jobs-shared" / "made-by-laplora").touch()
        return listdir(path)

    monkeypatch.setattr("service.jobs.store.folder.os.listdir", late)
    JobsFolder(tmp_path, shared=True).close()
