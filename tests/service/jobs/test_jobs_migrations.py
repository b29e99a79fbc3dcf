"""A jobs folder of the first release, brought up to date: nothing of it is lost, and what had not ended goes on."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from job_calls import ended, get, lines, methods, refused, rows
from serving import serve
from sqlalchemy import Engine

from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.evaluate import MeasureOptions
from service.jobs.database import Database
from service.jobs.folder import JobsFolder
from service.jobs.migrations import FORMAT, STEPS, migrate, read_format
from service.jobs.store import Store

DONE, OPEN = "d" * 32, "e" * 32
ARTIFACT = ArtifactRef(name="fake", digest="sha256:fake", base_model="tiny", quantization="none")


def sqlite(path: Path) -> Engine:
    return sa.create_engine(f"sqlite:///{path}")


def about(rows: int) -> str:
    """Return a job's description as the first release wrote it."""
    options = MeasureOptions(resamples=10).model_dump()
    fields: dict[str, Any] = {
        "labels": ["negative", "positive"],
        "several": False,
        "options": options,
        "tokens": 3 * rows,
    }
    return json.dumps({"artifact": ARTIFACT.model_dump(), "rows": rows, "created_at": 1e9, **fields})


def first_release(jobs_dir: Path, items: list[dict[str, Any]]) -> Path:
    """Make a folder as the first release left it, with one job that is done and one of these items that is not."""
    folder = JobsFolder(jobs_dir)
    folder.close()
    (folder.path / f"{OPEN}.jsonl").write_bytes(lines(items))
    with sqlite(folder.database).begin() as connection:
        assert migrate(connection, upto=5) == (0, 5)
    result = {"artifact": ARTIFACT.model_dump(), "rows": 3, "methods": {}}
    with closing(sqlite3.connect(folder.database)) as db, db:
        for job_id, count, status, kept in ((DONE, 3, "done", json.dumps(result)), (OPEN, len(items), "queued", None)):
            db.execute(
                "INSERT INTO jobs (id, owner, about, status, sums, result, finished_at) "
                "VALUES (?, 'ann', ?, ?, '{}', ?, ?)",
                (job_id, about(count), status, kept, None if kept is None else 2e9),
            )
        db.execute("INSERT INTO bad_rows VALUES (1, 2, 'unscorable_input')")
    return folder.path


@pytest.mark.anyio
async def test_jobs_of_the_first_release_stay_and_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    items = rows(40)
    folder = first_release(tmp_path, items)
    async with serve(jobs_dir=tmp_path, job_keep_s=1e9) as served:
        done = await get(served, DONE)
        assert (done["status"], done["result"]["rows"], done["columns"], done["keep_rows"]) == ("done", 3, [], False)
        assert done["bad_rows"] == [{"line": 3, "code": "unscorable_input"}]
        went_on = await ended(served, OPEN)
        assert went_on["result"]["methods"] == await methods(served, items)
        for job_id in (DONE, OPEN):
            refused(await served.client.get(f"/evaluate/jobs/{job_id}/results"), 404, "rows_not_kept")
            events = (await served.client.get(f"/evaluate/jobs/{job_id}/events")).text
            assert '"status":"done"' in events
        # As that release promised, its prompts leave the disk as it ends.
        await served.until(lambda: not list(folder.glob("*.jsonl")))
    (told,) = [vars(record) for record in caplog.records if getattr(record, "event", "") == "jobs_migrated"]
    assert (told["before"], told["format"]) == (5, FORMAT)
    # The second start has nothing to do, and an older server refuses the folder by the number that it looks at.
    with closing(sqlite3.connect(folder / "jobs.sqlite")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (FORMAT,)


def test_every_step_leads_to_the_tables_of_a_new_database(tmp_path: Path) -> None:
    def tables(path: Path) -> list[tuple[str, ...]]:
        with closing(sqlite3.connect(path)) as db:
            names = [
                name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            ]
            return [(name, *map(str, db.execute(f"PRAGMA table_info({name})").fetchall())) for name in names]

    new = tmp_path / "new.sqlite"
    Store(Database.in_file(new)).close()
    for begin in sorted(STEPS):
        path = tmp_path / f"{begin}.sqlite"
        with sqlite(path).begin() as connection:
            migrate(connection, upto=begin)
        Store(Database.in_file(path)).close()
        assert tables(path) == tables(new)


def test_a_step_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jobs.sqlite"
    with sqlite(path).begin() as connection:
        migrate(connection, upto=5)
    before = path.read_bytes()
    monkeypatch.setitem(STEPS, 6, (STEPS[6][0], "CREATE TABLE nonsense"))
    with pytest.raises(sqlite3.OperationalError):
        Database.in_file(path)
    with sqlite(path).connect() as connection:
        assert read_format(connection) == 5
        columns = [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(jobs)")]
    assert "paused" not in columns
    assert len(before) <= path.stat().st_size
