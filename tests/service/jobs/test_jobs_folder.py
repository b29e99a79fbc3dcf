"""The jobs folder: nobody else's file is touched, and one process has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_calls import refused
from serving import serve

from service.jobs.store.folder import JobsFolder, StrangersError

ID = "7f3c1f0ab5a94f6fa7c3d1b2c4e5f607"


async def refused_by(jobs_dir: Path) -> str:
    """Return what a server says of a jobs folder that it leaves alone, with every file in it, and serves without."""

    def contents() -> dict[Path, tuple[bytes, int]]:
        files = [path for path in jobs_dir.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = contents()
    async with serve(jobs_dir=jobs_dir) as served:
        error = refused(await served.client.get("/evaluate/jobs"), 503, "jobs_unavailable")
        assert (await served.predict("a")).status_code == 200
    assert contents() == before
    return str(error["message"])


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl",),
        ("upload.part", "notes.txt"),
        (f"{ID}.part", "lock"),
        ("laplora-jobs/notes.txt",),
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
async def test_a_damaged_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    JobsFolder(tmp_path).close()
    (tmp_path / "laplora-jobs" / "jobs.sqlite").write_bytes(b"no database" * 1000)
    assert "database is not one" in await refused_by(tmp_path)


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
    theirs = [tmp_path / "b.jsonl", *(folder.path / name for name in (f"{ID}.jsonl.bak", "train.jsonl", "x.part"))]
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
    assert error.value.names == [str(path.relative_to(tmp_path)) for path in theirs]
    assert [path.exists() for path in theirs] == [True] * 4


def test_what_a_file_system_puts_there_is_no_stranger(tmp_path: Path) -> None:
    """Nor is a start that was cut off before the marker."""
    (tmp_path / "laplora-jobs").mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".nfs0001").write_text("x")
    folder = JobsFolder(tmp_path)
    (folder.path / ".DS_Store").write_text("x")
    assert sorted(p.name for p in folder.path.iterdir()) == [".DS_Store", "lock", "made-by-laplora"]
    folder.close()
    JobsFolder(tmp_path).close()
    assert (tmp_path / ".nfs0001").read_text() == "x"
