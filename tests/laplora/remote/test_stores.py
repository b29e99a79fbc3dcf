"""Stores: S3 (a real moto server), Google Cloud Storage and the hub (servers of what they are asked); addresses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_servers import Hub, answering, bucket_server, hub_server, running, web_server

from laplora.errors import ConfigError, DownloadError
from laplora.remote.address import is_address, is_plain, parse_address
from laplora.remote.client import StoreClient, StoreError
from laplora.remote.objects import ObjectStore
from laplora.remote.stores import load, open_store, save

LARGE = 20 * 2**20


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server("owner/name", monkeypatch) as hub:
        yield hub


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "large").write_bytes(b"x" * LARGE)
    (tmp_path / "none").write_bytes(b"")
    (tmp_path / "manifest").write_bytes(b"{}")
    return {"manifest.json": tmp_path / "manifest", "a/large.bin": tmp_path / "large", "none": tmp_path / "none"}


def give_and_take(url: str, files: dict[str, Path], target: Path) -> None:
    store = open_store(parse_address(url))
    store.write(files, "manifest.json")
    store.write(files, "manifest.json")
    assert load(store, "manifest.json", most_bytes=2) == b"{}"
    save(store, "a/large.bin", target / "deep" / "large", size_bytes=LARGE)
    assert (target / "deep" / "large").read_bytes() == files["a/large.bin"].read_bytes()
    save(store, "none", target / "none", size_bytes=0)
    for size in (LARGE - 1, LARGE + 1):
        with pytest.raises(DownloadError, match=r"a/large\.bin"):
            save(store, "a/large.bin", target / "cut", size_bytes=size)
    with pytest.raises(DownloadError, match="more than 1 bytes"):
        load(store, "manifest.json", most_bytes=1)
    with pytest.raises(FileNotFoundError):
        load(store, "nowhere.json", most_bytes=1)
    assert store.state("nowhere.json") is None
    size, state = store.state("manifest.json") or (0, "")
    assert size == 2
    assert state


def test_an_s3_store_gives_what_it_was_given(
    s3: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_and_take(f"{s3}/folder", files, tmp_path)
    with pytest.raises(DownloadError, match="bucket"):
        open_store(parse_address("s3://nowhere/one")).write(files, "manifest.json")
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(DownloadError) as refused:
        load(open_store(parse_address(f"{s3}/folder")), "manifest.json", most_bytes=9)
    assert "unmistakable" not in str(refused.value)


def test_a_google_store_gives_what_it_was_given(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files["a/large.bin"].write_bytes(b"x" * LARGE)
    objects: dict[str, bytes] = {}
    with bucket_server(objects) as url:
        account = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": ""}
        (tmp_path / "account.json").write_text(json.dumps(account | {"private_key_id": ""}))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
        # In one piece: what this server does not know is a transfer in parts.
        monkeypatch.setattr("laplora.remote.objects._PART_BYTES", 2 * LARGE)
        give_and_take("gs://models/folder", files, tmp_path)
    assert sorted(objects) == [f"/models/folder/{name}" for name in ("a/large.bin", "manifest.json", "none")]


def test_the_hub_is_read_at_one_commit_and_written_in_one(hub: Hub, tmp_path: Path) -> None:
    first = hub.commit({"sub/manifest.json": b"one", "README.md": b"a card"})
    store = open_store(parse_address("hf://owner/name/sub"))
    assert store.version == first
    second = hub.commit({"sub/manifest.json": b"two"})
    # The branch has moved on, the commit has not.
    assert load(store, "manifest.json", most_bytes=3) == b"one"
    assert store.state("manifest.json") != open_store(parse_address("hf://owner/name/sub")).state("manifest.json")
    assert store.state("nowhere.json") is None
    with pytest.raises(FileNotFoundError):
        load(store, "nowhere.json", most_bytes=3)
    (tmp_path / "a").write_bytes(b"three")
    written = open_store(parse_address("hf://owner/name@main/sub")).write({"manifest.json": tmp_path / "a"}, "a")
    assert written not in (None, first, second)
    assert hub.branches["main"] == written
    at = open_store(parse_address(f"hf://owner/name@{written}/sub"))
    assert load(at, "manifest.json", most_bytes=5) == b"three"
    with pytest.raises(DownloadError, match="more than 4"):
        load(at, "manifest.json", most_bytes=4)


def test_a_private_repository_needs_the_token_of_the_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit({"manifest.json": b"{}"})
    hub.token = "hf_hidden"
    with pytest.raises(DownloadError):
        open_store(parse_address("hf://owner/name"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert load(open_store(parse_address("hf://owner/name")), "manifest.json", most_bytes=2) == b"{}"
    with pytest.raises(DownloadError, match="no such repository") as refused:
        open_store(parse_address("hf://owner/other"))
    assert "hidden" not in str(refused.value)
    with pytest.raises(DownloadError, match="no such revision"):
        open_store(parse_address("hf://owner/name@v9"))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "refused"), (403, "refused"), (451, "refused"), (429, "unreachable"), (503, "unreachable")],
)
def test_a_store_that_refuses_is_not_one_that_is_away(status: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(answering(lambda *_request: (status, {"ETag": '"1"'}, b""))) as url:
        for name, value in (("ENDPOINT_URL", url), ("ALLOW_HTTP", "true"), ("REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.setenv(f"AWS_{name}", "hidden")
        with pytest.raises(StoreError) as raised:
            StoreClient("s3://bucket", tries=0).state("name")
    assert raised.value.kind == kind


def test_a_web_server_is_only_read(files: dict[str, Path], tmp_path: Path) -> None:
    with web_server(tmp_path) as web, pytest.raises(ConfigError, match="only read"):
        open_store(parse_address(web.url)).write(files, "manifest.json")
    assert web.asked == []


def test_a_store_that_is_gone_is_named_without_its_query(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("laplora.remote.objects._TRIES", 0)
    with web_server(tmp_path) as web:
        address = parse_address(f"{web.url}/folder?signature=hidden")
    with pytest.raises(DownloadError) as refused:
        load(ObjectStore(address), "manifest.json", most_bytes=1)
    assert str(address) in str(refused.value)
    assert "hidden" not in str(refused.value)


PIN = "a" * 64


@pytest.mark.parametrize(
    "text",
    [
        *(
            "ftp://host/a",
            "file:///etc/passwd",
            "s3://",
            "s3://bucket:9000/a",
            "s3://bucket/../other",
            "s3://bucket/a//b",
        ),
        *("s3://bucket/.hidden", "s3://bucket/%2e%2e/other", "s3://bucket/a?versionId=1", "s3://bucket/a#sha256=abc"),
        *(f"s3://bucket/a#sha512={PIN}", f"s3://bucket/a#sha256={PIN.upper()}"),
        *("hf://name", "hf://owner/name@", "hf://owner/name@a/../b", "hf://datasets/owner/name"),
        *("hf://owner/name?token=hidden", "http://host/a", "http://169.254.169.254/latest", "https:///a"),
        *("http://127.0.0.1.example.com/a", "https://host/a\n", "https://host/a b", "https://host\\@other/a"),
        *("https://me:hidden@host/a", "https://host:port/a", "https://[::1/a"),
    ],
)
def test_what_is_no_address_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_address(text)
    assert "hidden" not in str(refused.value)


def test_an_address_is_a_folder_and_a_pin() -> None:
    for text in ("s3://bucket/a/b", "s3://bucket", "gs://bucket/a", "https://host:8443/a", "http://127.0.0.1:9/a"):
        plain, pinned = parse_address(text), parse_address(f"{text}/#sha256={PIN}")
        assert str(plain) == str(pinned) == text
        assert (plain.sha256, pinned.sha256) == (None, PIN)
        assert (is_address(text), is_address(Path(text))) == (True, False)
    assert not any(map(is_address, ("artifacts/sst2", "/a/b", "sst2", "C:\\a", "s3:/bucket/a")))
    hub = parse_address(f"hf://owner/name@v1.0/sub/folder#sha256={PIN}")
    assert (hub.repository, hub.revision, hub.folder) == ("owner/name", "v1.0", "sub/folder")
    assert str(hub) == "hf://owner/name@v1.0/sub/folder"
    assert str(hub.at("c" * 40)) == f"hf://owner/name@{'c' * 40}/sub/folder"
    assert parse_address("hf://owner/name").revision is None
    assert parse_address("hf://owner/name@refs%2Fpr%2F1").revision == "refs/pr/1"
    signed = parse_address("https://host/a?X-Amz-Signature=hidden")
    assert (signed.query, signed.is_private) == ("X-Amz-Signature=hidden", True)
    assert "hidden" not in f"{signed} {signed!r}"


def test_a_plain_path_stays_in_its_folder_and_others_do_not() -> None:
    assert all(map(is_plain, ("manifest.json", "members/1/adapter/adapter_config.json", "report/Größe.html")))
    others = ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".a", "a/.b", "a.", "a ", "a/b ./c"]
    others += ["a\\b", "C:a", "a\0b", "a\nb", "a?b", "a*", "a" * 401, "/".join("abcdefghi")]
    assert list(filter(is_plain, others)) == []
