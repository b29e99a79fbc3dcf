"""An artifact's folder: one test per way of being wrong, and a writer that never shows half of one."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import FinishedRun, reseal

from laplora.artifact.folder import new_artifact, read_artifact
from laplora.artifact.manifest import GOLDEN, MANIFEST, POSTERIOR, SCORES
from laplora.errors import (
    ArtifactCorruptError,
    ArtifactIncompatibleError,
    ArtifactNotFoundError,
    ArtifactWriteError,
    LaploraError,
)

ADAPTER = "adapter/adapter_model.safetensors"
ADAPTER_CONFIG = "adapter/adapter_config.json"
FILES = (ADAPTER, ADAPTER_CONFIG, POSTERIOR, GOLDEN, SCORES, "report/evaluation.json", "report/reliability.png")
DEFAULT_ARTIFACT = Path(__file__).resolve().parents[3] / "artifacts" / "sst2-smollm2"


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Change fields of the manifest's JSON, valid or not."""
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_reads_what_the_job_wrote(sentiment_run: FinishedRun) -> None:
    artifact = read_artifact(sentiment_run.artifact)
    assert artifact.name == "tiny-sentiment"
    assert artifact.manifest.labels == ("negative", "positive")
    assert set(FILES) <= set(artifact.manifest.files)
    assert artifact.digest == "sha256:" + hashlib.sha256((sentiment_run.artifact / MANIFEST).read_bytes()).hexdigest()


def test_files_can_be_read_by_another_user(sentiment_run: FinishedRun) -> None:
    """A server in a container runs as someone else; safetensors alone would leave files at mode 600."""
    for path in [sentiment_run.artifact, *sentiment_run.artifact.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_the_committed_artifact_reads_and_is_small() -> None:
    """A format change that leaves it behind must raise the format version, and package it again."""
    artifact = read_artifact(DEFAULT_ARTIFACT)
    assert artifact.manifest.quantization == "nf4"
    assert sum(r.size_bytes for r in artifact.manifest.files.values()) < 10_000_000


@pytest.mark.parametrize("name", ["nothing-here", "a-file"])
def test_no_artifact(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(ArtifactNotFoundError, match=f"no artifact at '{name}'.*manifest.json"):
        read_artifact(tmp_path / name)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("cut", ["empty", "one byte", "header length", "header", "middle", "last byte missing"])
def test_a_truncated_file(artifact_copy: Path, file: str, cut: str) -> None:
    raw = (artifact_copy / file).read_bytes()
    kept = {"empty": 0, "one byte": 1, "header length": 8, "header": 40, "middle": len(raw) // 2}.get(cut, len(raw) - 1)
    (artifact_copy / file).write_bytes(raw[:kept])
    with pytest.raises(ArtifactCorruptError, match=f"{file} has {kept} bytes, the manifest says {len(raw)}"):
        read_artifact(artifact_copy)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_bit(artifact_copy: Path, file: str, place: float) -> None:
    raw = bytearray((artifact_copy / file).read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 1
    (artifact_copy / file).write_bytes(raw)
    with pytest.raises(ArtifactCorruptError, match=f"{file} has the SHA-256 [0-9a-f]*..., the manifest says"):
        read_artifact(artifact_copy)


def test_a_flipped_bit_in_the_manifest_is_refused_or_changes_the_digest(artifact_copy: Path) -> None:
    """Nothing but the digest vouches for the manifest itself, so a digit may change unseen, but never silently."""
    raw = (artifact_copy / MANIFEST).read_bytes()
    digest = read_artifact(artifact_copy).digest
    for place in range(0, len(raw), 97):
        (artifact_copy / MANIFEST).write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        try:
            assert read_artifact(artifact_copy).digest != digest
        except LaploraError:
            continue


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("file", [ADAPTER, ADAPTER_CONFIG, POSTERIOR, GOLDEN, SCORES])
def test_a_missing_file(artifact_copy: Path, file: str, sealed: bool) -> None:
    """Sealed: not missed by the manifest. Without its safetensors file PEFT would look for a pickled one."""
    (artifact_copy / file).unlink()
    if sealed:
        reseal(artifact_copy)
    with pytest.raises(ArtifactCorruptError, match=rf"files missing \['{file}'\]"):
        read_artifact(artifact_copy)


@pytest.mark.parametrize("file", ["adapter/adapter_model.bin", ".hidden", "report/deep/er.txt"])
def test_an_extra_file(artifact_copy: Path, file: str) -> None:
    (artifact_copy / file).parent.mkdir(exist_ok=True)
    (artifact_copy / file).write_text("x")
    with pytest.raises(ArtifactCorruptError, match=rf"not in the manifest \['{file}'\]"):
        read_artifact(artifact_copy)


@pytest.mark.parametrize("file", [ADAPTER, MANIFEST])
def test_a_link_out_of_the_folder(artifact_copy: Path, tmp_path: Path, file: str) -> None:
    shutil.move(artifact_copy / file, tmp_path / "outside")
    (artifact_copy / file).symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactCorruptError, match=f"{file} leads out of the folder"):
        read_artifact(artifact_copy)


def test_a_linked_subfolder(artifact_copy: Path, tmp_path: Path) -> None:
    shutil.move(artifact_copy / "adapter", tmp_path / "outside")
    (artifact_copy / "adapter").symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactCorruptError, match=r"files missing|leads out"):
        read_artifact(artifact_copy)


def test_a_manifest_path_out_of_the_folder(artifact_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    files = json.loads((artifact_copy / MANIFEST).read_text())["files"]
    edit_manifest(artifact_copy, files=files | {"../outside": files[GOLDEN]})
    with pytest.raises(ArtifactCorruptError, match=r"files missing \['../outside'\]"):
        read_artifact(artifact_copy)


def test_a_git_lfs_pointer_is_called_one(artifact_copy: Path) -> None:
    (artifact_copy / ADAPTER).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 796904\n")
    with pytest.raises(ArtifactCorruptError, match=r"it is a git-lfs pointer, .*git lfs pull"):
        read_artifact(artifact_copy)


@pytest.mark.parametrize("version", [0, 3, 5, "4", True, 4.0, None, {}])
def test_another_format_version(artifact_copy: Path, version: object) -> None:
    edit_manifest(artifact_copy, format_version=version)
    with pytest.raises(ArtifactIncompatibleError, match=r"has format .*, this version reads 4"):
        read_artifact(artifact_copy)


NO_MANIFESTS = {
    "empty": "",
    "null": "null",
    "list": "[]",
    "number": "3",
    "string": '"x"',
    "no version": "{}",
    "open": '{"format_version": 4, "name": "ti',
    "deep": "[" * 100_000,
    "deep inside": '{"format_version": ' + "[" * 100_000,
    "mark": "\xef\xbb\xbf{}",
    "no UTF-8": "\xff\xfe\x00{",
    "huge number": "9" * 5000,
}


@pytest.mark.parametrize("text", NO_MANIFESTS.values(), ids=NO_MANIFESTS)
def test_a_manifest_that_is_none(artifact_copy: Path, text: str) -> None:
    (artifact_copy / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactCorruptError, match=r"not a JSON manifest: expected an object with a format_version"):
        read_artifact(artifact_copy)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"labels": ["only one"]}, "labels"),
        ({"label_token_ids": "x"}, "label_token_ids"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"quantization": "int3"}, "quantization"),
        ({"name": "../../etc"}, "name"),
        ({"surprise": 1}, "surprise"),
        (
            {"prior": {"method": "evidence", "granularity": "scalar", "precision": {"all": "NaN"}, "objective": 0}},
            "prior",
        ),
        ({"files": {GOLDEN: {"sha256": "zz", "size_bytes": 3}}}, "sha256"),
        ({"metrics": None}, "metrics"),
        ({"predictives": {}}, "must have the predictive 'map'"),
        ({"predictives": {"swag": {}}}, "predictives.swag"),
        (
            {"recommended": {"predictive": "ensemble", "reason": "", "chosen_by": "calibration", "table": {}}},
            "must have the predictive 'ensemble'",
        ),
        ({"members": [{"folder": "../x", "step": 1, "prior": None}]}, "members.0.folder"),
        ({"dropout": {"probability": 1.0, "members": 2, "seed": 0}}, "dropout.probability"),
    ],
)
def test_bad_fields_are_named(artifact_copy: Path, changes: dict[str, Any], field: str) -> None:
    edit_manifest(artifact_copy, **changes)
    with pytest.raises(ArtifactCorruptError, match=f"has bad fields: .*{field}"):
        read_artifact(artifact_copy)


def test_deep_nesting_where_anything_is_allowed(artifact_copy: Path) -> None:
    nested: list[Any] = []
    for _ in range(500):
        nested = [nested]
    edit_manifest(artifact_copy, metrics={"x": nested})
    assert read_artifact(artifact_copy).manifest.metrics["x"]


# Writing.


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def write_half(target: Path, error: type[BaseException]) -> None:
    """Begin an artifact and fail."""
    with new_artifact(target) as folder:
        (folder / "half").write_text("x")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_artifact_alone(artifact_copy: Path, error: type[BaseException]) -> None:
    before = read_artifact(artifact_copy)
    with pytest.raises(error):
        write_half(artifact_copy, error)
    assert read_artifact(artifact_copy) == before
    assert leftovers(artifact_copy.parent) == []


def test_a_failed_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "deep" / "new", RuntimeError)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_write_replaces_all_of_the_old_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr("laplora.artifact.folder._exchange", lambda *_: False)
    for content in ("one", "two"):
        with new_artifact(tmp_path / "it") as folder:
            (folder / content).write_text(content)
            (folder / MANIFEST).write_text('{"format_version": 4}')
    assert sorted(p.name for p in (tmp_path / "it").iterdir()) == ["manifest.json", "two"]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "another manifest", "file", "broken link"])
def test_what_is_no_artifact_is_not_replaced(tmp_path: Path, kind: str) -> None:
    """A run whose name is that of a user's folder beside the artifacts must not take its place."""
    target = tmp_path / "papers"
    if kind in ("folder", "another manifest"):
        target.mkdir()
        (target / "thesis.tex").write_text("x")
        if kind == "another manifest":  # of a web page
            (target / MANIFEST).write_text('{"name": "papers", "start_url": "/"}')
    elif kind == "file":
        target.write_text("x")
    else:
        target.symlink_to("nowhere")
    with pytest.raises(ArtifactWriteError, match="papers is there and is no artifact"), new_artifact(target):
        pytest.fail("nothing should be written")
    assert [p.name for p in tmp_path.iterdir()] == ["papers"]
    assert target.is_symlink() or (target / "thesis.tex").is_file() or target.read_text() == "x"


def test_an_empty_folder_may_become_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    with new_artifact(tmp_path / "it") as folder:
        (folder / MANIFEST).write_text('{"format_version": 4}')
    assert [p.name for p in (tmp_path / "it").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("failure", [OSError("disk on fire"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_rename_that_fails_brings_the_old_artifact_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    monkeypatch.setattr("laplora.artifact.folder._exchange", lambda *_: False)
    with new_artifact(tmp_path / "it") as folder:
        (folder / MANIFEST).write_text('{"format_version": 4}')
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(failure)), new_artifact(tmp_path / "it") as folder:
        (folder / "new").write_text("")
    assert [p.name for p in (tmp_path / "it").iterdir()] == [MANIFEST]
    assert leftovers(tmp_path) == []


def test_a_reader_sees_the_old_or_the_new_artifact(sentiment_run: FinishedRun, tmp_path: Path) -> None:
    """Two artifacts take turns under one name while it is read: each answer is one of the two, whole."""
    target, digests = tmp_path / "it", set()
    for created in ("2001-01-01T00:00:00+00:00", "2002-02-02T00:00:00+00:00"):
        folder = Path(shutil.copytree(sentiment_run.artifact, tmp_path / created[:4]))
        # a file of another name in each, so that a mixture of the two can only fail
        (folder / f"report/{created[:4]}").write_text(created)
        reseal(folder, created=created)
        digests.add(read_artifact(folder).digest)
    shutil.copytree(tmp_path / "2001", target)
    done = threading.Event()

    def write() -> None:
        try:
            for turn in range(24):
                with new_artifact(target) as folder:
                    shutil.copytree(tmp_path / ("2002", "2001")[turn % 2], folder, dirs_exist_ok=True)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    try:
        while not done.is_set():
            artifact = read_artifact(target)
            assert f"report/{artifact.manifest.created[:4]}" in artifact.manifest.files
            seen.add(artifact.digest)
    finally:
        writer.join()
    assert seen <= digests
    assert leftovers(tmp_path) == []
