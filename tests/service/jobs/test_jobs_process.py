"""Jobs of real processes: killed, stopped, on a disk without room, and with uploads in an S3 store (moto)."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_calls import JSONL, holding, lines, poisoned, rows
from job_servers import Servers, check_whole, has, job_until, submit_to
from remote_servers import object_server
from server_process import Process, metric, until
from stored_jobs import kept_rows
from tcp_proxy import tcp_proxy

from service.errors import JobsUnavailableError, UploadChangedError
from service.jobs.store.database import Database
from service.jobs.store.job_tables import JobTables
from service.jobs.store.remote import RemoteUploads

SMALL_BATCHES = ("--batch-tokens", "40")


def test_killed_and_stopped_jobs_go_on_without_a_lost_or_doubled_row(servers: Servers) -> None:
    count, bad, before, job_id = 1200, (3, 350, 351, 820, 1199), 0, ""
    ends = {1: signal.SIGKILL, 200: signal.SIGKILL, 500: signal.SIGKILL, 950: signal.SIGTERM}
    # However late the end comes, it comes before the row that waits for it.
    waits = {150: 99_701, 450: 99_702, 900: 99_703, 1100: 99_704}
    items = holding(poisoned(count, *bad), waits)
    poison = ",".join(str(90_500 + number) for number in bad)
    flags = [*SMALL_BATCHES, "--max-inputs", "2500", "--max-queue-rows", "6000", "--drain-s", "0", "--leave-s", "1"]
    for (least, how), token in zip(ends.items(), waits.values(), strict=True):
        process = servers.start(*flags, poison=poison)
        with process.client() as client:
            job_id = job_id or submit_to(client, items)
            job_until(client, job_id, lambda job: job["rows_done"] >= least)  # noqa: B023
            process.popen.send_signal(how)
            assert process.left() == (0 if how == signal.SIGTERM else -how)
        servers.let_pass(token)
        store = JobTables(Database.in_file(servers.folder / "jobs.sqlite"))
        (job,) = store.reads.jobs()
        stored = kept_rows(store, job.number)
        store.close()
        assert job.status == "queued"
        assert before <= least <= job.rows_done < count
        assert stored == [row for row in range(job.rows_done) if row not in bad]
        before = len(stored)
    process = servers.start(*flags, poison=poison)
    with process.client() as client:
        check_whole(client, job_id, items, bad)
        assert metric(client, "laplora_job_rows_total") == count - len(bad) - before


def test_uploads_that_break_off_or_are_refused_leave_nothing(servers: Servers) -> None:
    def part() -> bool:
        return bool(list(servers.folder.glob("*.part")))

    def breaks_off() -> Iterator[bytes]:
        yield lines(rows(10))
        until(part)
        raise ConnectionAbortedError

    keyed = JSONL | {"idempotency-key": "k"}
    with servers.start(*SMALL_BATCHES).client() as client:
        with pytest.raises(ConnectionAbortedError):
            client.post("/evaluate/jobs", content=breaks_off(), headers=keyed)
        until(lambda: not part())
        assert client.post("/evaluate/jobs", content=lines(rows(3)), headers=keyed).json()["rows"] == 3
        # A refusal is answered while much is still sent.
        body = b"no json\n" * 2_000_000
        for content in (body, iter([body[:1_000_000]] * 16)):
            response = client.post("/evaluate/jobs", content=content, headers=JSONL)
            assert (response.status_code, response.json()["error"]["field"]) == (422, "lines.1")
        assert not part()


# Disks without room


Steps = tuple[Callable[[Process], None], Callable[[Process], None]]


@contextmanager
def mounted(path: Path) -> Iterator[Steps]:
    """Make a folder a small disk; yield what fills it, and what frees it again."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]).returncode:
        pytest.skip("mounting a small disk needs root")

    def fill(process: Process) -> None:
        with (path / "filler").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)

    try:
        yield fill, lambda process: (path / "filler").unlink()
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def limited(path: Path) -> Iterator[Steps]:
    """The same by a limit of files' sizes in place of a disk's: it needs no root, and is another error."""

    def limit(process: Process, size: int) -> None:
        hard = resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (size, hard))

    def fill(process: Process) -> None:
        limit(process, max(file.stat().st_size for file in (path / "jobs" / "laplora-jobs").iterdir()))

    yield fill, lambda process: limit(process, resource.RLIM_INFINITY)


@pytest.mark.parametrize("kind", [mounted, limited])
def test_a_disk_without_room(servers: Servers, kind: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    servers.jobs_dir = disk / "jobs"
    process = servers.start(*SMALL_BATCHES)
    with kind(disk) as (fill, free), process.client() as client:
        servers.shut()
        job_id = submit_to(client, rows(3000))
        names = sorted(path.name for path in servers.folder.iterdir())
        fill(process)
        refused = client.post("/evaluate/jobs", content=lines(rows(5000)), headers=JSONL)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_full")
        assert int(refused.headers["retry-after"]) > 0
        assert sorted(path.name for path in servers.folder.iterdir()) == names
        assert len(client.get("/evaluate/jobs").json()["jobs"]) == 1
        servers.open()
        paused = job_until(client, job_id, has("paused"))
        assert paused["paused"]["code"] == "storage_full"
        assert paused["rows_done"] < 3000
        assert client.post("/predict", json={"inputs": [{"text": "a"}]}).status_code == 200
        assert client.get("/health/ready").status_code == 200
        free(process)
        assert job_until(client, job_id, has("done"))["result"]["rows"] == 3000
        assert "Traceback" not in process.log


@pytest.fixture
def s3() -> Iterator[dict[str, str]]:
    """Yield the environment of a client of a store with an empty bucket ``jobs``."""
    pytest.importorskip("obstore")
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
        for job_id in ids:  # told of at the other one, at most
            assert clients[0].delete(f"/evaluate/jobs/{job_id}").json()["outcome"] == "removed"
        until(lambda: names(s3) == [])


def test_what_a_store_that_is_away_still_has_goes_once_it_is_back(
    servers: Servers, url: str, s3: dict[str, str], tmp_path: Path
) -> None:
    """Jobs that ended, and that were deleted, done or running, while it was away, and servers that were killed then."""
    store, processes = JobTables(Database.at_url(url)), list[Process]()
    with tcp_proxy(httpx.URL(s3["AWS_ENDPOINT_URL"]).port or 0) as proxy, ExitStack() as stack:
        servers.environment |= {"LAPLORA_JOBS_URL": url, "LAPLORA_JOBS_FILES_URL": "s3://jobs/away", **s3}
        servers.environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"

        def another(folder: str) -> httpx.Client:
            servers.jobs_dir = tmp_path / folder
            processes.append(servers.start("--batch-tokens", "40", "--job-look-s", "0.1"))
            return stack.enter_context(processes[-1].client())

        one, two = another("one"), another("two")
        ended = submit_to(one, rows(8))
        job_until(one, ended, has("done"))
        servers.shut()
        running = [submit_to(one, rows(8)) for _ in range(2)]
        params: dict[str, Any] = {"resamples": 10, "keep_rows": False}
        unkept = one.post("/evaluate/jobs", content=lines(rows(8)), headers=JSONL, params=params).json()["id"]
        until(lambda: sum(bool(job.begun) for job in store.reads.jobs()) == 3)
        proxy.go_away()
        for client, job_id in zip((two, one, two), (ended, *running), strict=True):
            assert client.delete(f"/evaluate/jobs/{job_id}").json()["outcome"] == "removed"
        servers.open()
        job_until(two, unkept, has("done"))
        until(lambda: not list(tmp_path.rglob("*.jsonl")))
        assert len(names(s3)) == 4
        for process in processes:
            process.popen.send_signal(signal.SIGKILL)
            process.popen.wait()
        proxy.come_back()
        another("three")
        until(lambda: names(s3) == [])
        assert [job.id for job in store.reads.jobs()] == [unkept]
        for number in range(1, 5):
            until(lambda: kept_rows(store, number) == [])  # noqa: B023
    store.close()
