"""Artifacts of a web server: fetched whole or not at all, and nothing but what their manifest names and bounds."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from remote_servers import Web, web_server

from benchmarks.harness.provenance import ARTIFACT
from laplora.artifact.fetched import FetchRules, fetch_artifact, local_artifact, pull_artifact
from laplora.artifact.folder import Artifact, new_artifact, read_artifact
from laplora.artifact.packaged import new_version
from laplora.errors import (
    ArtifactCorruptError,
    ArtifactIncompatibleError,
    ArtifactNotFoundError,
    ArtifactWriteError,
    ConfigError,
    DownloadError,
)
from laplora.remote.address import parse_address

POSTERIOR = "posterior.safetensors"


@dataclass
class Site:
    """A web server with an artifact, and the cache of whoever fetches it."""

    web: Web
    folder: Path
    cache: Path

    @property
    def address(self) -> str:
        return f"{self.web.url}/{ARTIFACT.name}"

    @property
    def files(self) -> list[str]:
        """The files that were asked for since the last look."""
        names = [path.partition("?")[0].removeprefix(f"/{ARTIFACT.name}/") for path in self.web.asked]
        self.web.asked.clear()
        return names

    def fetch(self, pin: str = "", **how: Any) -> Path:
        return fetch_artifact(parse_address(self.address + pin), cache=self.cache, **how)

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the manifest that the server has."""
        path = self.folder / "manifest.json"
        fields = json.loads(path.read_bytes())
        change(fields)
        path.write_text(json.dumps(fields))

    def nothing_was_kept(self) -> bool:
        """Return whether the cache has no artifact that a reader would take."""
        return not list(self.cache.glob("artifacts/*/*/manifest.json"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    shutil.copytree(ARTIFACT, tmp_path / "site" / ARTIFACT.name)
    with web_server(tmp_path / "site") as web:
        yield Site(web, tmp_path / "site" / ARTIFACT.name, tmp_path / "cache")


@pytest.fixture(scope="module")
def whole() -> Artifact:
    return read_artifact(ARTIFACT)


def pin(artifact: Artifact) -> str:
    return f"#{artifact.digest.replace(':', '=')}"


def test_each_version_of_an_artifact_is_fetched_once_by_its_digest(site: Site, whole: Artifact) -> None:
    said: list[str] = []
    folder = site.fetch(progress=said.append)
    assert folder.name == ARTIFACT.name
    assert read_artifact(folder).digest == whole.digest
    assert sorted(site.files) == sorted(["manifest.json", *whole.manifest.files])
    assert pin(whole) in said[-1]
    # Of an address that is not pinned the manifest is asked for, of one that is nothing.
    assert site.fetch() == folder
    assert site.files == ["manifest.json"]
    assert site.fetch(pin(whole)) == folder
    assert local_artifact(site.address + pin(whole), cache=site.cache) == folder
    assert site.files == []
    # What is there is taken however large, and where the server answers no more.
    assert site.fetch(rules=FetchRules(most_bytes=1, most_files=1)) == folder
    site.web.needs = "another=1"
    assert site.fetch(pin(whole)) == folder
    with pytest.raises(DownloadError, match="refuses"):
        site.fetch()
    # Another version is another folder.
    site.web.needs = None
    site.edit(lambda fields: fields.update(created="2026-01-01T00:00:00Z"))
    second = site.fetch()
    assert second != folder
    assert read_artifact(folder).digest == whole.digest != read_artifact(second).digest
    with pytest.raises(ArtifactCorruptError, match="pinned"):
        site.fetch(f"#sha256={'0' * 64}")
    # A folder is taken as it is.
    assert local_artifact(str(ARTIFACT)) == ARTIFACT
    with pytest.raises(ConfigError):
        local_artifact("ftp://host/a")


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.json", "a/../../evil.json", "/tmp/evil.json", "C:evil.json", "a\\..\\evil.json", ".evil.json"),
        *("evil.json\x00", "manifest.json", "Manifest.json", "GOLDEN.JSON", "golden.json/x.json", "con.json"),
        *("adapter/adapter_model.bin", "evil.pkl", "evil.py", "evil.tar", "evil"),
        *("/".join(["a"] * 9) + ".json", "a" * 500 + ".json"),
    ],
)
def test_names_that_no_artifact_has_are_refused_before_anything_is_fetched(site: Site, name: str) -> None:
    record = {"sha256": "0" * 64, "size_bytes": 1}
    site.edit(lambda fields: fields["files"].update({name: record}))
    with pytest.raises(ArtifactCorruptError, match="no artifact has"):
        site.fetch()
    assert site.files == ["manifest.json"]
    assert not site.cache.exists()


def test_too_much_is_refused_before_anything_is_fetched(site: Site, whole: Artifact) -> None:
    total = sum(record.size_bytes for record in whole.manifest.files.values())
    with pytest.raises(DownloadError, match=f"{total} bytes, more than {total - 1}"):
        site.fetch(rules=FetchRules(most_bytes=total - 1))
    with pytest.raises(DownloadError, match=r"\d+ files, more than 3: .*--max-fetch-files"):
        site.fetch(rules=FetchRules(most_files=3))
    site.edit(lambda fields: fields["files"][POSTERIOR].update(size_bytes=2**60))
    with pytest.raises(DownloadError, match="more than"):
        site.fetch()
    with pytest.raises(DownloadError, match="bytes of disk"):
        site.fetch(rules=FetchRules(most_bytes=2**62))
    record = {"sha256": "0" * 64, "size_bytes": 0}
    site.edit(lambda fields: fields.update(files={f"{i}.json": record for i in range(5000)}))
    with pytest.raises(DownloadError, match="5000 files"):
        site.fetch()
    (site.folder / "manifest.json").write_bytes(b" " * (17 * 2**20))
    with pytest.raises(DownloadError, match="more than 16777216 bytes"):
        site.fetch()
    assert set(site.files) == {"manifest.json"}
    assert site.nothing_was_kept()


def test_a_base_that_nobody_allowed_is_refused_before_anything_is_fetched(site: Site, tmp_path: Path) -> None:
    site.edit(lambda fields: fields.update(base_model="/srv/models/secret"))
    with pytest.raises(ConfigError, match=r"folder of this machine: .*--allowed-bases"):
        site.fetch()
    with pytest.raises(ConfigError, match="--allowed-bases"):
        pull_artifact(parse_address(site.address), tmp_path / "mine", cache=site.cache)
    assert site.files == ["manifest.json"] * 2
    assert site.nothing_was_kept()
    assert not (tmp_path / "mine").exists()
    folder = site.fetch(rules=FetchRules(("/srv/models/*",)))
    # In the cache it is as before: whoever asks next has not allowed it.
    for address in ("", pin(read_artifact(folder))):
        with pytest.raises(ConfigError, match="--allowed-bases"):
            site.fetch(address)
        assert site.fetch(address, rules=FetchRules(("/srv/models/secret",))) == folder


def flipped(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda raw: raw[:-1], DownloadError, "ended after"),
        (lambda raw: raw + b"x" * 2**20, DownloadError, "has more than"),
        (flipped, ArtifactCorruptError, "not what its manifest.json says"),
        (None, ArtifactCorruptError, "lacks posterior.safetensors"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says(
    site: Site, damage: Callable[[bytes], bytes] | None, error: type[Exception], says: str, whole: Artifact
) -> None:
    file = site.folder / POSTERIOR
    file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(error, match=says):
        site.fetch()
    assert site.nothing_was_kept()
    # Once it is mended, what was right all along is not asked for again, nor taken where a kill left half of it.
    site.web.asked.clear()
    shutil.copyfile(ARTIFACT / POSTERIOR, file)
    (partial,) = site.cache.glob("artifacts/.*.partial")
    left = {name for name in whole.manifest.files if (partial / name).exists()} - {POSTERIOR}
    half = min(left)
    (partial / half).write_bytes((partial / half).read_bytes()[:-1])
    assert read_artifact(site.fetch()).digest == whole.digest
    assert {*site.files} == {"manifest.json", *whole.manifest.files} - left | {half}
    assert not list(site.cache.glob("artifacts/.*.partial"))


def test_what_is_no_artifact(site: Site) -> None:
    """Its name must neither lead out of the cache nor hide the record there."""
    manifest = site.folder / "manifest.json"
    fields = json.loads(manifest.read_bytes())
    files = {name: record for name, record in fields["files"].items() if name != "golden.json"}
    for content, error in (
        (json.dumps(fields | {"name": ".fetched.json"}), ArtifactCorruptError),
        (json.dumps(fields | {"name": "../a"}), ArtifactCorruptError),
        (json.dumps(fields | {"files": files}), ArtifactCorruptError),
        (json.dumps(fields | {"format_version": 5}), ArtifactIncompatibleError),
        ("<html>sign in</html>", ArtifactCorruptError),
        (None, ArtifactNotFoundError),
    ):
        manifest.unlink() if content is None else manifest.write_text(content)
        with pytest.raises(error):
            site.fetch()
        assert site.nothing_was_kept()


def test_a_signature_is_sent_with_every_request_and_shown_nowhere(site: Site, whole: Artifact) -> None:
    site.web.needs = "X-Signature=hidden&expires=1"
    said: list[str] = []
    folder = site.fetch(f"?{site.web.needs}", progress=said.append)
    assert all("hidden" in path for path in site.web.asked)
    kept = [path.read_bytes() for path in site.cache.rglob("*") if path.is_file()]
    assert not any(b"hidden" in content for content in kept)
    assert "hidden" not in " ".join(said)
    assert folder.is_dir()
    with pytest.raises(DownloadError) as refused:
        site.fetch("?X-Signature=hidden&more")
    assert "hidden" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_a_copy_in_the_cache_cannot_be_changed_and_one_of_ones_own_can(
    site: Site, whole: Artifact, tmp_path: Path
) -> None:
    folder = site.fetch()
    (folder / POSTERIOR).write_bytes(flipped((folder / POSTERIOR).read_bytes()))
    assert site.fetch(pin(whole)) == folder  # damaged it is fetched again
    assert read_artifact(folder).digest == whole.digest
    for change_it in (lambda: new_version(read_artifact(folder), folder), lambda: new_artifact(folder)):
        with pytest.raises(ArtifactWriteError, match="pull"), change_it():
            pass
    mine = tmp_path / "mine"
    assert pull_artifact(parse_address(site.address), mine, cache=site.cache).digest == whole.digest
    with new_artifact(mine) as new:
        shutil.copytree(ARTIFACT, new, dirs_exist_ok=True)
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactWriteError, match=r"notes\.txt"):
        pull_artifact(parse_address(site.address), mine, cache=site.cache)
    assert (mine / "notes.txt").read_text() == "mine"


def test_several_at_once_fetch_it_once(site: Site, whole: Artifact) -> None:
    together = threading.Barrier(3)

    def wait_for_all(path: str) -> None:
        if path.endswith("manifest.json"):
            together.wait(300)

    site.web.before = wait_for_all
    with ThreadPoolExecutor(3) as pool:
        folders = {done.result() for done in [pool.submit(site.fetch) for _ in range(3)]}
    assert len(folders) == 1
    assert read_artifact(folders.pop()).digest == whole.digest
    assert sorted(site.files) == sorted(["manifest.json"] * 3 + list(whole.manifest.files))
