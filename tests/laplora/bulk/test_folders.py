"""Objects of a real S3 server and of a web server read by range and written whole, and whole runs from them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from remote_servers import running
from test_rows import windows, write_parquet
from tiny_runs import FinishedRun, sentiment_rows, write_rows

from laplora.bulk.folders import Store, place_of
from laplora.bulk.parts import Parts
from laplora.bulk.rows import Source
from laplora.bulk.score import Scored, score_file
from laplora.errors import ConfigError, DataError

pytest.importorskip("obstore")


@pytest.fixture
def store(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Store:
    """A folder of this test's own."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Store(f"s3://rows/{request.node.name}")


def test_an_object_is_read_by_range_and_of_one_version(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laplora.bulk.folders._RANGE_BYTES", 1000)
    content = bytes(range(256)) * 40
    store.write("a", content)
    version = store.version("a")
    with store.open("a", version) as file:
        assert file.read() == content
        file.seek(-6, io.SEEK_END)
        assert file.read() == content[-6:]
        file.seek(4000)
        assert file.read(10) == content[4000:4010]
        store.write("a", content + b"more")
        file.seek(0)
        with pytest.raises(DataError, match="changed while it was read"):
            file.read()
    with pytest.raises(DataError, match="changed while it was read"):
        store.open("a", version)
    assert store.identity("a")["bytes"] == len(content) + 4


def test_an_object_is_written_whole_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laplora.bulk.folders._PART_BYTES", 5 * 2**20)
    parts = [b"x" * 2**20] * 12
    store.write("a", iter(parts))
    assert store.read("a") == b"".join(parts)

    def broken() -> Iterator[bytes]:
        yield from parts
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write("b", broken())
    assert not store.exists("b")
    assert store.names() == {"a"}
    store.remove(["a", "none"])
    assert store.names() == set()
    with pytest.raises(FileNotFoundError):
        store.version("a")


def test_blocks_are_kept_in_a_store_as_in_a_folder(store: Store) -> None:
    parts = Parts(f"{store.url}/out.parts/")
    assert parts.begin({"a": 1}) == {}
    assert [parts.begun(0), parts.begun(0)] == [0, 1]
    finished = parts.write(0, [(1, b"a\n", False), (2, b"b\n", True)])
    assert parts.begin({"a": 1}) == {0: finished}
    assert list(parts.lines([finished])) == [b"a\n", b"b\n"]
    parts.remove()
    assert store.names() == set()


def test_a_run_from_a_store_into_it(store: Store, sentiment_run: FinishedRun, tmp_path: Path) -> None:
    rows = [{"id": str(number), "text": row["text"]} for number, row in enumerate(sentiment_rows()[:20])]
    for name in ("rows.jsonl", "rows.parquet"):
        local = write_rows(tmp_path / name, rows) if name.endswith("l") else write_parquet(tmp_path / name, rows, 6)
        store.write(name, local.read_bytes())
        assert windows(Source.at(f"{store.url}/{name}", 3, ["id", "text"])) == windows(Source.at(local, 3))
    options = {"device": "cpu", "window": 8}
    out = f"{store.url}/out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_file(sentiment_run.artifact, f"{store.url}/rows.jsonl", out, **options, progress=interrupt)
    assert {"000000.json", "000000.jsonl", "run.json"} == Store(f"{out}.parts").names()
    assert score_file(sentiment_run.artifact, f"{store.url}/rows.jsonl", out, **options) == Scored(20, 0, ())
    score_file(sentiment_run.artifact, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", **options)
    assert store.read("out.jsonl") == (tmp_path / "out.jsonl").read_bytes()
    assert store.names() == {"rows.jsonl", "rows.parquet", "out.jsonl"}


def interrupt(_line: str) -> None:
    raise KeyboardInterrupt


class Untagged(SimpleHTTPRequestHandler):
    """A folder's files, whole or by range, with the time of the last change and no ETag; it knows no conditions."""

    says_when = True

    def do_GET(self) -> None:
        begin, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        file = Path(self.translate_path(self.path))
        content = file.read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{len(content)}")
        self.send_header("Content-Length", str(len(content[begin : end + 1])))
        self.send_header("Last-Modified", self.date_time_string(file.stat().st_mtime))
        self.end_headers()
        self.wfile.write(content[begin : end + 1])

    def send_header(self, keyword: str, value: str) -> None:
        if self.says_when or keyword != "Last-Modified":
            super().send_header(keyword, value)

    def log_message(self, *_arguments: object) -> None:
        pass


class Unsaid(Untagged):
    says_when = False


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The files below ``tmp_path`` at a web server."""
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with running(partial(Untagged, directory=str(tmp_path))) as url:
        yield Store(url)


def put(file: Path, content: bytes, day: int) -> None:
    file.write_bytes(content)
    os.utime(file, (86_400 * day, 86_400 * day))


def test_without_an_etag_the_time_of_the_change_tells_during_a_run(
    web: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laplora.bulk.folders._RANGE_BYTES", 10)
    put(tmp_path / "a", b"old" * 100, 1)
    version = web.version("a")
    with web.open("a", version) as file:
        assert file.read(3) == b"old"
        put(tmp_path / "a", b"new" * 100, 2)
        with pytest.raises(DataError, match="changed while it was read"):
            file.read()
    with pytest.raises(DataError, match="changed while it was read"):
        web.open("a", version)
    with web.open("a", web.version("a")) as file:
        assert file.read() == b"new" * 100


def test_without_an_etag_a_source_of_another_day_is_not_gone_on_with(
    web: Store, sentiment_run: FinishedRun, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": row["text"]} for row in sentiment_rows()[:20]])
    content, source, out = file.read_bytes(), f"{web.url}/rows.jsonl", tmp_path / "out.jsonl"
    options = {"device": "cpu", "window": 8}
    put(file, content, 1)
    with pytest.raises(KeyboardInterrupt):
        score_file(sentiment_run.artifact, source, out, **options, progress=interrupt)
    put(file, content[::-1], 2)
    with pytest.raises(ConfigError, match=r"of another run .*source was"):
        score_file(sentiment_run.artifact, source, out, **options)
    put(file, content, 1)
    assert score_file(sentiment_run.artifact, source, out, **options) == Scored(20, 0, ())


def test_a_server_that_tells_no_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    put(tmp_path / "rows.jsonl", b"1\n", 1)
    with (
        running(partial(Unsaid, directory=str(tmp_path))) as url,
        pytest.raises(DataError, match="neither an ETag nor a time of the last change"),
    ):
        Source.at(f"{url}/rows.jsonl", 4)


def test_what_cannot_be_reached_is_said(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="expected the URL of an object"):
        place_of("s3://bucket/")
    with pytest.raises(ConfigError, match="no store that can be used"):
        place_of("nowhere://bucket/key")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match="no such file"):
        Source.at("s3://rows/none.jsonl", 4)
    assert httpx.put(f"{environment['AWS_ENDPOINT_URL']}/rows/a.jsonl", content=b"1\n", timeout=None).status_code == 200
    assert windows(Source.at("s3://rows/a.jsonl", 4)) == [[(1, b"1\n")]]
