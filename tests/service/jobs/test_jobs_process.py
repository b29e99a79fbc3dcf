"""Jobs of a real process: killed, stopped, on a disk without room."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from job_calls import JSONL, holding, lines, poisoned, rows
from job_servers import Servers, has, job_until, methods, submit_to
from server_process import Process, metric, until

SMALL_BATCHES = ("--batch-tokens", "40")


def test_killed_jobs_go_on_without_a_lost_or_doubled_row(servers: Servers) -> None:
    count, bad, before, job_id = 1200, (3, 350, 351, 820, 1199), 0, ""
    # However late the kill comes, it comes before the row that waits for it.
    waits = {150: 99_701, 450: 99_702, 900: 99_703}
    items = holding(poisoned(count, *bad), waits)
    poison = ",".join(str(90_500 + number) for number in bad)
    flags = [*SMALL_BATCHES, "--max-inputs", "2500", "--max-queue-rows", "6000", "--drain-s", "0"]
    for kill_at, token in zip((1, 200, 500), waits.values(), strict=True):
        process = servers.start(*flags, poison=poison)
        with process.client() as client:
            job_id = job_id or submit_to(client, items)
            job_until(client, job_id, lambda job: job["rows_done"] >= kill_at)  # noqa: B023
            process.popen.send_signal(signal.SIGKILL)
            process.popen.wait()
        servers.let_pass(token)
        ((status, done, stored),) = servers.stored().values()
        assert status == "queued"
        assert before <= kill_at <= done < count
        assert stored == [row for row in range(done) if row not in bad]
        before = len(stored)
    process = servers.start(*flags, poison=poison)
    with process.client() as client:
        job = job_until(client, job_id, has("done"))
        assert (job["rows_done"], job["rows_bad"], job["result"]["rows"]) == (count, len(bad), count - len(bad))
        assert [row["line"] for row in job["bad_rows"]] == [number + 1 for number in bad]
        assert metric(client, "laplora_job_rows_total") == count - len(bad) - before
        assert job["result"]["methods"] == methods(client, [item for i, item in enumerate(items) if i not in bad])
        lines_kept = client.get(f"/evaluate/jobs/{job_id}/results").text.splitlines()
        answered = [json.loads(line) for line in lines_kept]
        assert [one["line"] for one in answered] == list(range(1, count + 1))
        assert [one["line"] - 1 for one in answered if one["answer"] is None] == list(bad)


def test_draining_stops_jobs_to_go_on(servers: Servers) -> None:
    process = servers.start(*SMALL_BATCHES)
    with process.client() as client:
        job_id = submit_to(client, holding(rows(500), {300: 99_701}))
        job_until(client, job_id, lambda job: job["rows_done"] > 0)
        servers.shut()
        process.popen.terminate()
        assert process.left() == 0
    ((status, done, stored),) = servers.stored().values()
    assert (status, stored) == ("queued", list(range(done)))
    assert 0 < done < 500
    servers.open()
    servers.let_pass(99_701)
    with servers.start().client() as client:
        assert job_until(client, job_id, has("done"))["result"]["rows"] == 500


# One server for what leaves nothing behind


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("shared"), stack)


@pytest.fixture(scope="module")
def client(shared: Servers) -> Iterator[httpx.Client]:
    with shared.start(*SMALL_BATCHES).client() as client:
        yield client


def test_a_client_that_goes_away_while_it_sends_leaves_nothing(shared: Servers, client: httpx.Client) -> None:
    class GoneAwayError(Exception):
        pass

    def part() -> bool:
        return bool(list(shared.folder.glob("*.part")))

    def breaks_off() -> Iterator[bytes]:
        yield lines(rows(10))
        until(part)
        raise GoneAwayError

    keyed = JSONL | {"idempotency-key": "k"}
    with pytest.raises(GoneAwayError):
        client.post("/evaluate/jobs", content=breaks_off(), headers=keyed)
    until(lambda: not part())
    assert client.post("/evaluate/jobs", content=lines(rows(3)), headers=keyed).json()["rows"] == 3


def test_a_refused_upload_is_answered_while_much_is_still_sent(client: httpx.Client) -> None:
    body = b"no json\n" * 2_000_000
    for content in (body, iter([body[:1_000_000]] * 16)):
        response = client.post("/evaluate/jobs", content=content, headers=JSONL)
        assert response.status_code == 422
        assert response.json()["error"]["field"] == "lines.1"


# Disks without room


@dataclass
class Disk:
    """A disk that can be filled and freed."""

    path: Path
    fill: Callable[[Process], None]
    free: Callable[[Process], None]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]).returncode:
        pytest.skip("mounting a small disk needs root")

    def fill(process: Process) -> None:
        with (path / "filler").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                return

    try:
        yield Disk(path, fill, lambda process: (path / "filler").unlink())
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def limited(tmp_path: Path) -> Disk:
    """A limit of files' sizes in place of a disk's: needs no root, and is another error."""
    path = tmp_path / "disk"
    path.mkdir()

    def limit(process: Process, size: int) -> None:
        hard = resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (size, hard))

    def fill(process: Process) -> None:
        limit(process, max(file.stat().st_size for file in (path / "jobs" / "laplora-jobs").iterdir()))

    return Disk(path, fill, lambda process: limit(process, resource.RLIM_INFINITY))


@pytest.mark.parametrize("kind", ["mounted", "limited"])
def test_a_disk_without_room(servers: Servers, kind: str, request: pytest.FixtureRequest) -> None:
    disk: Disk = request.getfixturevalue(kind)
    servers.jobs_dir = disk.path / "jobs"
    process = servers.start(*SMALL_BATCHES)
    with process.client() as client:
        servers.shut()
        job_id = submit_to(client, rows(3000))
        names = sorted(path.name for path in servers.folder.iterdir())
        disk.fill(process)
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
        disk.free(process)
        assert job_until(client, job_id, has("done"))["result"]["rows"] == 3000
        assert "Traceback" not in process.log
