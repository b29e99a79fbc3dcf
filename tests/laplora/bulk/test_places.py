"""Objects of a real S3 server and of a web server read by range and written whole, and whole runs from them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from unittest import mock

import pytest
from remote_servers import running
from test_files import predicted
from test_rows import windows, write_parquet
from tiny_runs import FinishedRun, sentiment_rows, write_rows

from laplora.bulk.rows import Source
from laplora.errors import ConfigError, DataError
from laplora.remote.places import place_of

pytest.importorskip("obstore")
ROWS = [{"id": str(number), "text": row["text"]} for number, row in enumerate(sentiment_rows()[:20])]


def test_an_object_is_of_one_version_and_written_whole_or_not_at_all(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laplora.remote.places._RANGE_BYTES", 1000)
    monkeypatch.setattr("laplora.remote.places._PART_BYTES", 5 * 2**20)
    place, other = place_of(f"{s3}/a"), place_of(f"{s3}/b")
    parts = [bytes(range(256)) * 2**12] * 12
    content = b"".join(parts)
    place.write(iter(parts))
    version = place.version()
    with place.open(version) as file:
        assert file.read(3000) == content[:3000]
        file.seek(-6, io.SEEK_END)
        assert file.read() == content[-6:]
        place.write([content, b"more"])
        file.seek(0)
        with pytest.raises(DataError, match="changed while it was read"):
            file.read()
    with pytest.raises(DataError, match="changed while it was read"):
        place.open(version)
    assert place.identity()["bytes"] == len(content) + 4

    def broken() -> Iterator[bytes]:
        yield from parts
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        other.write(broken())
    assert not other.exists()


def test_a_run_from_a_store_into_it(
    s3: str, sentiment_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the finished blocks are
    for name in ("rows.jsonl", "rows.parquet"):
        local = write_rows(tmp_path / name, ROWS) if name.endswith("l") else write_parquet(tmp_path / name, ROWS, 6)
        place_of(f"{s3}/{name}").write([local.read_bytes()])
        assert windows(Source.at(f"{s3}/{name}", 3, ["id", "text"])) == windows(Source.at(local, 3))
    out = f"{s3}/out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        predicted(sentiment_run, f"{s3}/rows.jsonl", out, progress=mock.Mock(side_effect=KeyboardInterrupt))
    assert {path.name for path in (tmp_path / "out.jsonl.parts").iterdir()} == {"000000.jsonl", "run.json"}
    assert predicted(sentiment_run, f"{s3}/rows.jsonl", out) == (20, 0)
    assert not (tmp_path / "out.jsonl.parts").exists()
    with pytest.raises(ConfigError, match="is there already"):
        predicted(sentiment_run, f"{s3}/rows.jsonl", out)
    predicted(sentiment_run, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    with place_of(out).open(place_of(out).version()) as file:
        assert file.read() == (tmp_path / "out.jsonl").read_bytes()
    late = place_of(f"{s3}/late.jsonl")
    with pytest.raises(ConfigError, match=r"is there already.*finished blocks are kept"):
        predicted(sentiment_run, f"{s3}/rows.jsonl", f"{s3}/late.jsonl", progress=lambda _line: late.write([b"theirs"]))
    assert late.identity()["bytes"] == 6
    assert (tmp_path / "late.jsonl.parts" / "000000.jsonl").exists()


class Untagged(BaseHTTPRequestHandler):
    """One object by range, with the time of its last change, if any, and no ETag; it knows no conditions."""

    content, changed = b"", 0.0

    def do_HEAD(self) -> None:
        whole = f"bytes=0-{len(self.content) - 1}"
        begin, end = map(int, self.headers.get("Range", whole).removeprefix("bytes=").split("-"))
        self.part = self.content[begin : end + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{len(self.content)}")
        self.send_header("Content-Length", str(len(self.part)))
        if self.changed:
            self.send_header("Last-Modified", self.date_time_string(self.changed))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.part)

    def log_message(self, *_arguments: object) -> None:
        pass


def put(content: bytes, day: int) -> None:
    Untagged.content, Untagged.changed = content, 86_400.0 * day


def test_without_an_etag_the_time_of_the_change_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setattr("laplora.remote.places._RANGE_BYTES", 10)
    with running(Untagged) as url:
        put(b"old" * 100, 1)
        place = place_of(f"{url}/a")
        version = place.version()
        with place.open(version) as file:
            assert file.read(3) == b"old"
            put(b"new" * 100, 2)
            with pytest.raises(DataError, match="changed while it was read"):
                file.read()
        with pytest.raises(DataError, match="changed while it was read"):
            place.open(version)
        with place.open(place.version()) as file:
            assert file.read() == b"new" * 100
        identity = place.identity()
        put(b"new" * 100, 3)
        assert place.identity() != identity  # so a run of another day does not go on with it
        put(b"1\n", 0)  # nor a time
        with pytest.raises(DataError, match="neither an ETag nor a time of the last change"):
            Source.at(f"{url}/rows.jsonl", 4)


def test_what_cannot_be_reached_is_said(s3: str) -> None:
    with pytest.raises(ConfigError, match="expected the URL of an object"):
        place_of("s3://bucket/")
    with pytest.raises(ConfigError, match="no store that can be used"):
        place_of("nowhere://bucket/key")
    with pytest.raises(DataError, match="no such file"):
        Source.at(f"{s3}/none.jsonl", 4)
