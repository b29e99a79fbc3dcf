"""Jobs of a real process: killed, stopped, on a disk without room."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from job_calls import JSONL, holding, lines, poisoned, rows
from job_servers import Servers, check_whole, has, job_until, submit_to
from server_process import Process, metric, until

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
        ((status, done, stored),) = servers.stored().values()
        assert status == "queued"
        assert before <= least <= done < count
        assert stored == [row for row in range(done) if row not in bad]
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
