"""The jobs folder: nobody else's file is touched, and what the first version kept there is read."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from serving import FakePredictor, Served, serve
from test_jobs import ended, get, held, lines, refused, rows, submit

from service.errors import JobsUnavailableError
from service.jobs import earlier_layout
from service.jobs.folder import JobsFolder, StrangersError
from service.jobs.store import Store

ID = "7f3c1f0ab5a94f6fa7c3d1b2c4e5f607"


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return every file below a folder, with what is in it and when it last changed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# Strangers


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl",),
        ("upload.part", "notes.txt"),
        (f"{ID}.jsonl",),
        (f"{ID}.part", "lock"),
        ("laplora-jobs/notes.txt",),
        (f"laplora-jobs/{ID}.jsonl",),
        ("laplora-jobs",),
        ("made-by-laplora",),
        ("sub/deep/train.jsonl",),
        ("jobs.sqlite-wal",),
    ],
)
@pytest.mark.anyio
async def test_a_folder_with_strangers_files_is_refused_and_left_alone(
    names: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a user's data\n")
    before = contents(tmp_path)
    async with serve(jobs_dir=tmp_path) as served:
        error = refused(await served.client.get("/evaluate/jobs"), 503, "jobs_unavailable")
        assert (await served.predict("a")).status_code == 200
    assert contents(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({name.split("/")[0] for name in names})
    for part in (
        "expected a jobs folder that is empty",
        f"got one with other files ({len(names)}, ",
        "another jobs_dir",
    ):
        assert part in error["message"]
    (told,) = [record for record in caplog.records if getattr(record, "event", "") == "jobs_unavailable"]
    # Names are in the log alone: callers do not learn what is on the server's disk.
    shown = [name if name.startswith("laplora-jobs/") else name.split("/")[0] for name in names]
    assert getattr(told, "files") == sorted(shown)  # noqa: B009
    assert not any(Path(name).name in error["message"] for name in names)


@pytest.mark.parametrize(
    "tables",
    [
        "CREATE TABLE jobs (a)",
        "CREATE TABLE jobs (a); CREATE TABLE rows (b); CREATE TABLE mine (c)",
        "CREATE TABLE jobs (id TEXT, owner TEXT); CREATE TABLE rows (job INTEGER, row INTEGER)",
        "CREATE TABLE jobs (id TEXT, owner TEXT); CREATE TABLE rows (job INTEGER); PRAGMA user_version = 1",
        "PRAGMA user_version = 7",
        pytest.param(lambda: FIRST_DDL.replace("user_version = 1", "user_version = 3"), id="another version"),
        pytest.param(lambda: FIRST_DDL + "CREATE VIEW mine AS SELECT 1;", id="a view"),
        pytest.param(lambda: FIRST_DDL + "ALTER TABLE jobs ADD COLUMN mine TEXT;", id="another column"),
    ],
)
def test_another_programs_database_is_a_strangers_file(tables: str | Callable[[], str], tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as db:
        db.executescript(tables if isinstance(tables, str) else tables())
    before = contents(tmp_path)
    with pytest.raises(StrangersError) as error:
        JobsFolder(tmp_path)
    assert error.value.names == ["jobs.sqlite"]
    assert contents(tmp_path) == before


def test_a_link_in_place_of_the_servers_own_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "made-by-laplora").touch()
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "laplora-jobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StrangersError):
        JobsFolder(tmp_path / "jobs")
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["made-by-laplora"]


def test_a_strangers_file_that_comes_later_is_never_touched(tmp_path: Path) -> None:
    folder = JobsFolder(tmp_path)
    theirs = [
        folder.path / "train.jsonl",
        folder.path / "x.part",
        folder.path / f"{ID}.jsonl.bak",
        tmp_path / "b.jsonl",
    ]
    for path in theirs:
        path.write_text("a user's data")
    left = [folder.inputs(ID), folder.upload(ID)]
    for path in left:
        path.write_text("what a crash left")
    folder.discard_others([])
    assert [path.exists() for path in theirs] == [True] * 4
    assert [path.exists() for path in left] == [False, False]
    folder.close()
    with pytest.raises(StrangersError) as error:
        JobsFolder(tmp_path)
    assert error.value.names == [
        "b.jsonl",
        f"laplora-jobs/{ID}.jsonl.bak",
        "laplora-jobs/train.jsonl",
        "laplora-jobs/x.part",
    ]
    assert [path.exists() for path in theirs] == [True] * 4


def test_what_a_file_system_puts_there_is_no_stranger(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".nfs0001").write_text("x")
    folder = JobsFolder(tmp_path)
    (folder.path / ".DS_Store").write_text("x")
    assert sorted(p.name for p in folder.path.iterdir()) == [".DS_Store", "lock", "made-by-laplora"]
    folder.close()
    JobsFolder(tmp_path).close()
    assert (tmp_path / ".nfs0001").read_text() == "x"


def test_a_start_that_was_cut_off_before_the_marker_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "laplora-jobs").mkdir()
    JobsFolder(tmp_path).close()
    assert (tmp_path / "laplora-jobs" / "made-by-laplora").is_file()


def test_one_process_has_the_folder(tmp_path: Path) -> None:
    folder = JobsFolder(tmp_path)
    with pytest.raises(JobsUnavailableError, match="another server process"):
        JobsFolder(tmp_path)
    folder.close()
    JobsFolder(tmp_path).close()


# The first version's folder

#: As that version wrote it; never to be changed.
FIRST_DDL = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    idempotency_key TEXT,
    about TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'queued',
    rows_done INTEGER NOT NULL DEFAULT 0,
    input_offset INTEGER NOT NULL DEFAULT 0,
    sums TEXT NOT NULL,
    error TEXT,
    result TEXT,
    started_at REAL,
    finished_at REAL,
    UNIQUE (owner, idempotency_key)
) STRICT;
CREATE TABLE rows (
    job INTEGER NOT NULL,
    row INTEGER NOT NULL,
    label INTEGER NOT NULL,
    methods TEXT NOT NULL,
    PRIMARY KEY (job, row)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
"""
HALF, DONE = "0123456789abcdef0123456789abcd01", "0123456789abcdef0123456789abcd02"
ITEMS = rows(40)


def probability(item: dict[str, Any]) -> float:
    return int(item["text"].split()[1]) / 100_000


async def first_folder(path: Path) -> dict[str, Any]:
    """Make a folder as the first version left it by a kill, and return its finished job's result.

    One job has 15 of its 40 rows on disk, one is done; two uploads are of no job. The log is not merged.
    """
    path.mkdir(mode=0o700)
    async with serve(max_inputs=100) as served:
        model = await submit(served, ITEMS[:15], resamples=10)
        own = held(served, model["id"])
        await served.until(lambda: own.finished)
        result = await served.state.jobs.result(own)
        about, sums = own.about.model_dump_json(), own.sums.model_dump_json()
    upload = lines(ITEMS)
    (path / f"{HALF}.jsonl").write_bytes(upload)
    for name in (f"{'ab' * 16}.part", f"{'cd' * 16}.jsonl"):
        (path / name).write_text("what a kill left of an upload")
    (path / "lock").touch(mode=0o600)
    making = path.parent / "making"
    making.mkdir()
    with closing(sqlite3.connect(making / "jobs.sqlite", isolation_level=None)) as db:
        for pragma in ("locking_mode = EXCLUSIVE", "auto_vacuum = INCREMENTAL", "journal_mode = WAL"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        db.executescript(FIRST_DDL)
        half = json.loads(about) | {"rows": 40}
        columns = "id, owner, about, status, rows_done, input_offset, sums, result, started_at, finished_at"
        insert = f"INSERT INTO jobs ({columns}) "
        offset = len(lines(ITEMS[:15]))
        values = "VALUES (?, '127.0.0.1', ?, ?, ?, ?, ?, ?, 1e9, ?)"
        db.execute(insert + values, (HALF, json.dumps(half), "queued", 15, offset, sums, None, None))
        db.execute(insert + values, (DONE, about, "done", 15, offset, sums, result, 4e9))
        for i, item in enumerate(ITEMS[:15]):
            p = [probability(item), 1 - probability(item)]
            methods = {"map": [p, None], "laplace": [p, 0.25], "temperature": [p, 0.3]}
            label = ["negative", "positive"].index(item["label"])
            db.execute("INSERT INTO rows VALUES (1, ?, ?, ?)", (i, label, json.dumps(methods)))
        # As after a kill: copied before anything is closed.
        for name in ("jobs.sqlite", "jobs.sqlite-wal"):
            (path / name).write_bytes((making / name).read_bytes())
    assert (path / "jobs.sqlite-wal").stat().st_size > 0
    assert result is not None
    return dict(json.loads(result))


async def check_nothing_is_lost(served: Served, path: Path, result: dict[str, Any]) -> None:
    done = await get(served, DONE)
    assert (done["status"], done["result"], done["rows_bad"]) == ("done", result, 0)
    half = await ended(served, HALF)
    assert (half["status"], half["rows_done"], half["result"]["rows"]) == ("done", 40, 40)
    direct = await served.client.post("/evaluate", json={"inputs": ITEMS, "options": {"resamples": 10}})
    assert half["result"]["methods"] == direct.json()["methods"]
    assert sorted(p.name for p in path.iterdir()) == [f"{'ab' * 16}.part", f"{'cd' * 16}.jsonl", "laplora-jobs", "lock"]
    for file in (path / "laplora-jobs").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) in (0o600, 0o644), file.name


@pytest.mark.anyio
async def test_the_first_versions_jobs_go_on(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    result = await first_folder(path)
    predictor = FakePredictor()
    async with serve(predictor, jobs_dir=path) as served:
        await check_nothing_is_lost(served, path, result)
        # The first 15 rows were not scored again.
        assert sum(len(batch) for _, batch in predictor.batches[:-1]) <= 25 + 40
    async with serve(jobs_dir=path) as served:
        assert {job["id"] for job in (await served.client.get("/evaluate/jobs")).json()["jobs"]} == {HALF, DONE}


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("survived", [0, 1])
@pytest.mark.anyio
async def test_a_move_that_is_cut_off_goes_on(survived: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = tmp_path / "jobs", 0
    result = await first_folder(path)
    rename = os.rename

    def dies(source: Any, target: Any) -> None:
        nonlocal done
        if done == survived:
            raise KilledError
        done += 1
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(earlier_layout.os, "rename", dies)
        with pytest.raises(KilledError):
            JobsFolder(path)
    assert (path / "jobs.sqlite").exists()
    async with serve(jobs_dir=path) as served:
        await check_nothing_is_lost(served, path, result)


@pytest.mark.anyio
async def test_a_first_version_that_still_runs_keeps_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    await first_folder(path)
    before = contents(path)
    with FileLock(path / "lock"), pytest.raises(JobsUnavailableError, match="another server process"):
        JobsFolder(path)
    assert contents(path) == before
    # And once its jobs have moved, it is refused in its turn.
    folder = JobsFolder(path)
    with pytest.raises(TimeoutError):
        FileLock(path / "lock", timeout=0).acquire()
    folder.close()


@pytest.mark.anyio
async def test_jobs_of_both_versions_are_never_mixed(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    await first_folder(path)
    JobsFolder(path).close()
    with closing(sqlite3.connect(path / "jobs.sqlite")) as db:
        db.executescript(FIRST_DDL)
    before = contents(path)
    with pytest.raises(JobsUnavailableError, match="an earlier version's jobs beside newer ones"):
        JobsFolder(path)
    assert contents(path) == before


def test_an_empty_folder_of_the_first_version_is_taken(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "jobs.sqlite").touch()
    folder = JobsFolder(tmp_path)
    store = Store(folder.database)
    assert store.jobs() == []
    store.close()
    folder.close()
