"""Uploads in an S3 store: a real moto server, two servers of the model that share no folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from job_calls import rows
from job_servers import Servers, has, job_until, submit_to
from remote_servers import object_server
from server_process import until

from service.errors import JobsUnavailableError, UploadChangedError
from service.jobs.store.remote import RemoteUploads

pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Yield the environment of a client of a store with the bucket ``jobs``."""
    with object_server("jobs") as environment:
        yield environment


@pytest.fixture
def store(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> RemoteUploads:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return RemoteUploads("s3://jobs/folder")


def names(s3: dict[str, str]) -> list[str]:
    listed = httpx.get(f"{s3['AWS_ENDPOINT_URL']}/jobs", params={"list-type": "2"}, timeout=None).text
    return re.findall("<Key>(.*?)</Key>", listed)


def test_objects_come_and_go_whole(
    store: RemoteUploads, s3: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upload, copy = tmp_path / "a", tmp_path / "b"
    # Several parts, and none.
    for content in (b"x" * (20 * 2**20), b""):
        upload.write_bytes(content)
        store.put(upload, "a.jsonl")
        store.get("a.jsonl", copy, size_bytes=len(content))
        assert copy.read_bytes() == content
        copy.unlink()
    assert names(s3) == ["folder/a.jsonl"]
    with pytest.raises(UploadChangedError):
        store.get("a.jsonl", copy, size_bytes=10)
    for _ in range(2):
        store.remove("a.jsonl")
        assert names(s3) == []
    with pytest.raises(FileNotFoundError):
        store.get("a.jsonl", copy, size_bytes=1)
    assert not copy.exists()
    # A store that does not answer is waited for, and no message has its secrets.
    with pytest.raises(JobsUnavailableError) as error:
        RemoteUploads("s3://another/folder").put(upload, "a")
    assert "unmistakable" not in str(error.value) + caplog.text


def test_servers_with_folders_of_their_own_share_jobs(
    servers: Servers, url: str, s3: dict[str, str], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        servers.environment |= {"LAPLORA_JOBS_URL": url, "LAPLORA_JOBS_FILES_URL": "s3://jobs/shared", **s3}
        clients = []
        for servers.jobs_dir in (tmp_path / "one", tmp_path / "two"):
            process = servers.start("--batch-tokens", "40", "--job-lease-s", "2")
            clients.append(stack.enter_context(process.client()))
        items = rows(150)
        ids = [submit_to(clients[0], items) for _ in range(4)]
        for job_id in ids:
            assert job_until(clients[1], job_id, has("done"), pause_s=0.1)["result"]["rows"] == 150
            for client in clients:
                got = client.get(f"/evaluate/jobs/{job_id}/results").text.splitlines()
                assert [json.loads(line)["input"] for line in got] == items
        assert sorted(names(s3)) == sorted(f"shared/{job_id}.jsonl" for job_id in ids)
        # No copy stays, neither where a job was run nor where its upload came.
        until(lambda: not list(tmp_path.rglob("*.jsonl")))
        for job_id in ids * 2:  # what was not read there before is kept at first
            clients[0].delete(f"/evaluate/jobs/{job_id}")
        assert names(s3) == []
