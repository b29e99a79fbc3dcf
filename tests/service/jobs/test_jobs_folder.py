"""The jobs folder: nobody else's file is touched, and one process has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from job_calls import JSONL, refused, rows, serve

from service.jobs.store.folder import JobsFolder, StrangersError

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
async def test_a_folder_with_strangers_files_is_refused_and_left_alone(
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
    with pytest.raises(StrangersError):
        JobsFolder(jobs_dir)
    assert [p.name for p in elsewhere.iterdir()] == ["made-by-laplora"]


def test_a_strangers_file_that_comes_later_is_never_touched(tmp_path: Path) -> None:
    """What a file system puts there is no stranger, nor is a start that was cut off before the marker."""
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
    with pytest.raises(StrangersError) as error:
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
