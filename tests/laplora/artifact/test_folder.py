"""An artifact's folder: what is wrong with one is named, and a writer never shows half of one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import FinishedRun, reseal

from laplora.artifact.folder import check_name, new_artifact, read_artifact
from laplora.artifact.manifest import GOLDEN, MANIFEST, POSTERIOR, SCORES
from laplora.artifact.partial import partial_folder
from laplora.errors import ArtifactCorruptError, ArtifactIncompatibleError, ArtifactWriteError, ConfigError

ADAPTER = "adapter/adapter_model.safetensors"
REQUIRED = (ADAPTER, "adapter/adapter_config.json", POSTERIOR, GOLDEN, SCORES)
FILES = (*REQUIRED, "report/evaluation.json", "report/results.md")


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Change fields of the manifest's JSON, valid or not."""
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_corrupt(folder: Path, message: str) -> None:
    with pytest.raises(ArtifactCorruptError, match=message):
        read_artifact(folder)


def test_reads_what_the_job_wrote(sentiment_run: FinishedRun) -> None:
    """Another user may read the files, as a server in a container does; safetensors alone would leave mode 600."""
    folder = sentiment_run.artifact
    artifact = read_artifact(folder)
    assert (artifact.name, artifact.manifest.labels) == ("tiny-sentiment", ("negative", "positive"))
    assert set(FILES) <= set(artifact.manifest.files)
    assert artifact.digest == "sha256:" + hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_the_umask_says_who_may_read_an_artifact(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with new_artifact(tmp_path / "private") as folder:
            (folder / "report").mkdir(mode=0o700)
            (folder / "report" / "fit.json").touch(mode=0o600)
    finally:
        os.umask(before)
    found = [path.stat().st_mode & 0o777 for path in (tmp_path / "private", *(tmp_path / "private").rglob("*"))]
    assert found == [0o777 & ~umask, 0o777 & ~umask, 0o666 & ~umask]


def test_every_file_is_verified(artifact_copy: Path) -> None:
    """Cut, or gone: from the manifest too, so that PEFT would look for a pickled adapter."""
    sealed = (artifact_copy / MANIFEST).read_bytes()
    for name in REQUIRED:
        raw = (artifact_copy / name).read_bytes()
        (artifact_copy / name).write_bytes(raw[:-1])
        assert_corrupt(artifact_copy, f"{name} has {len(raw) - 1} bytes, the manifest says {len(raw)}")
        (artifact_copy / name).unlink()
        assert_corrupt(artifact_copy, rf"files missing \['{name}'\]")
        reseal(artifact_copy)
        assert_corrupt(artifact_copy, rf"files missing \['{name}'\]")
        (artifact_copy / MANIFEST).write_bytes(sealed)
        (artifact_copy / name).write_bytes(raw)
    (artifact_copy / ADAPTER).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 796904\n")
    assert_corrupt(artifact_copy, r"it is a git-lfs pointer, .*git lfs pull")


@pytest.mark.parametrize("name", [ADAPTER, MANIFEST, "adapter"])
def test_a_link_out_of_the_folder(artifact_copy: Path, tmp_path: Path, name: str) -> None:
    shutil.move(artifact_copy / name, tmp_path / "outside")
    (artifact_copy / name).symlink_to(tmp_path / "outside")
    assert_corrupt(artifact_copy, "leads out|files missing")


def test_a_manifest_of_another_format_or_none(artifact_copy: Path) -> None:
    for version in (4, 6, "7", True, 7.0, None):
        edit_manifest(artifact_copy, format_version=version)
        with pytest.raises(ArtifactIncompatibleError, match=r"has format .*, this version reads 8"):
            read_artifact(artifact_copy)
    edit_manifest(artifact_copy, format_version=9)
    with pytest.raises(ArtifactIncompatibleError, match="update laplora"):
        read_artifact(artifact_copy)
    edit_manifest(artifact_copy, format_version=8, metrics="@")
    fields = (artifact_copy / MANIFEST).read_text()
    for raw in (b"[]", b"{}", b"[" * 100_000, b"\xff\xfe\x00{", b"9" * 5000):
        (artifact_copy / MANIFEST).write_bytes(raw)
        assert_corrupt(artifact_copy, r"not a JSON manifest: expected an object with a format_version")
    # What could be read and not be written again would break every list.
    for depth in (40, 100, 600):
        (artifact_copy / MANIFEST).write_text(fields.replace('"@"', '{"a": ' * depth + "1" + "}" * depth))
        if depth == 40:
            read_artifact(artifact_copy).manifest.model_dump_json()
        else:
            assert_corrupt(artifact_copy, "nested more than 64 levels")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "../../etc"}, "name"),
        ({"template": lambda kept: kept | {"text": "Who is {id}? Answer:"}}, "template: .*has the field 'id'"),
        ({"predictives": {}}, "must have the predictive 'map'"),
        ({"predictives": {"swag": {}}}, "predictives.swag"),
        ({"recommended": {"predictive": "swag"}}, "recommended.predictive"),
        ({"experts": {}}, "predictive 'conditioned' is of an adapter, or of a head or pool that is not there"),
        ({"predictives": lambda kept: {n: r for n, r in kept.items() if n != "conditioned"}}, "is no predictive"),
        ({"pool": {"adapter": 0.5, "frozen": 0.5}}, "the pool weighs 'frozen', which the artifact does not have"),
    ],
)
def test_bad_fields_are_named(artifact_copy: Path, changes: dict[str, Any], field: str) -> None:
    kept = json.loads((artifact_copy / MANIFEST).read_text())
    edit_manifest(artifact_copy, **{n: v(kept[n]) if callable(v) else v for n, v in changes.items()})
    assert_corrupt(artifact_copy, f"has bad fields: .*{field}")


# Writing.


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write(target: Path, name: str) -> None:
    with new_artifact(target) as folder:
        (folder / name).write_text("x")
        (folder / MANIFEST).write_text('{"format_version": 8}')


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_write_replaces_all_of_the_old_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr("laplora.artifact.folder._exchange", lambda *_: False)
    (tmp_path / "it").mkdir()  # an empty folder may become an artifact
    write(tmp_path / "it", "one")
    write(tmp_path / "it", "two")
    assert names(tmp_path / "it") == [MANIFEST, "two"]
    assert names(tmp_path) == ["it"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"thesis.tex": "x"}, "is there and is no artifact"),
        ({"thesis.tex": "x", MANIFEST: '{"name": "papers", "start_url": "/"}'}, "is there and is no artifact"),
        ({"": "x"}, "is there and is no artifact"),
        (None, "papers is a link"),
        # Of an artifact the folder is replaced whole, and a user's notes would be lost in it.
        ({MANIFEST: '{"format_version": 4, "files": {"a.json": {}}}', "a.json": "{}", "my/notes": "x"}, "my/notes"),
    ],
)
def test_what_is_no_artifact_is_not_replaced(tmp_path: Path, files: dict[str, str] | None, message: str) -> None:
    """A run whose name is that of a user's folder beside the artifacts must not take its place."""
    target = tmp_path / "papers"
    if files is None:
        write(tmp_path / "real", "one")
        target.symlink_to(tmp_path / "real")
    for name, text in (files or {}).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
    with pytest.raises(ArtifactWriteError, match=message), new_artifact(target):
        pytest.fail("nothing should be written")
    assert target.is_symlink() == (files is None)
    for name, text in (files or {}).items():
        assert (target / name).read_text() == text


def test_a_folder_that_no_artifact_can_be_called_as(tmp_path: Path) -> None:
    for name in ("my artifact", "..", "ü", "x" * 65, "-a"):
        with pytest.raises(ConfigError, match="is no name for one"):
            check_name(tmp_path / name)
    check_name(tmp_path / "x.1_a-b")


def test_a_rename_that_fails_brings_the_old_artifact_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laplora.artifact.folder._exchange", lambda *_: False)
    write(tmp_path / "it", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "it", "new")
    assert names(tmp_path / "it") == [MANIFEST, "old"]
    assert names(tmp_path) == ["it"]


def test_a_reader_sees_the_old_or_the_new_artifact(sentiment_run: FinishedRun, tmp_path: Path) -> None:
    """Two artifacts take turns under one name while it is read: each answer is one of the two, whole."""
    target, seen = tmp_path / "it", set[str]()
    versions = [Path(shutil.copytree(sentiment_run.artifact, tmp_path / year)) for year in ("2001", "2002")]
    for folder in versions:
        # a file of another name in each, so that a mixture of the two can only fail
        (folder / f"report/{folder.name}").write_text(folder.name)
        reseal(folder, created=folder.name)
    shutil.copytree(versions[0], target)

    def take_turns() -> None:
        for turn in range(24):
            with new_artifact(target) as folder:
                shutil.copytree(versions[1 - turn % 2], folder, dirs_exist_ok=True)

    with ThreadPoolExecutor(1) as pool:
        turns = pool.submit(take_turns)
        while not turns.done():
            artifact = read_artifact(target)
            assert f"report/{artifact.manifest.created}" in artifact.manifest.files
            seen.add(artifact.digest)
    turns.result()
    assert seen <= {read_artifact(folder).digest for folder in versions}
    assert names(tmp_path) == ["2001", "2002", "it"]


_WRITER = """
import sys
from pathlib import Path
from laplora.artifact.partial import partial_folder

with partial_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_process_writes_stays_and_what_a_killed_one_left_goes_with_the_next_write(tmp_path: Path) -> None:
    command, pipe = [sys.executable, "-c", _WRITER, str(tmp_path / "it")], subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as process:
        try:
            left = tmp_path / process.stdout.readline().strip()
            with partial_folder(tmp_path / "it") as ours, partial_folder(tmp_path / "it") as too:
                assert names(tmp_path) == sorted([left.name, ours.name, too.name])
        finally:
            process.kill()
    assert names(left) == ["half"]
    with partial_folder(tmp_path / "other"):
        assert left.exists()  # of another artifact
    with partial_folder(tmp_path / "it") as folder:
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


def test_other_names_are_nobodys_but_the_users(tmp_path: Path) -> None:
    """And a link of such a name leads to no loss."""
    mine = [".it.partial", ".it.ABCDEFGH.partial", ".it.more.abcdefgh.partial", "it.abcdefgh.partial", ".it.abcdefgh"]
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("x")
    (tmp_path / ".it.abcdefgh.partial").symlink_to(tmp_path / mine[0])
    with partial_folder(tmp_path / "it"):
        pass
    assert all(names(tmp_path / name) == ["thesis.tex"] for name in mine)
