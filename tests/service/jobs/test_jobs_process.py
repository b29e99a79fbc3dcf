"""Jobs of a real process: killed, stopped, on a disk without room, followed over a socket."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from job_calls import JSONL, lines, poisoned, rows
from job_servers import Servers, has, methods, metric, submit_to, until
from server_process import Process


def kill(process: Process) -> None:
    process.popen.send_signal(signal.SIGKILL)
    process.popen.wait()


@pytest.mark.parametrize(
    ("count", "bad", "kills"),
    [(2500, (), (1, 300, 900)), (600, (3, 150, 151, 420, 599), (100, 300))],
    ids=["good rows", "bad rows too"],
)
def test_killed_jobs_go_on_without_a_lost_or_doubled_row(
    count: int, bad: tuple[int, ...], kills: tuple[int, ...], servers: Servers
) -> None:
    items = poisoned(count, *bad)
    poison = ",".join(str(90_500 + number) for number in bad)
    flags = ["--batch-tokens", "40", "--max-inputs", "2500", "--max-queue-rows", "6000", "--drain-s", "0"]
    before, job_id = 0, ""
    for kill_at in kills:
        process = servers.start(*flags, poison=poison)
        with process.client() as client:
            job_id = job_id or submit_to(client, items)
            until(client, job_id, lambda job: job["rows_done"] >= kill_at)  # noqa: B023
            kill(process)
        ((status, done, stored),) = servers.stored().values()
        assert status == "queued"
        assert before <= kill_at <= done < count
        assert stored == [row for row in range(done) if row not in bad]
        before = len(stored)
    process = servers.start(*flags, poison=poison)
    with process.client() as client:
        job = until(client, job_id, has("done"))
        assert (job["rows_done"], job["rows_bad"], job["result"]["rows"]) == (count, len(bad), count - len(bad))
        assert [row["line"] for row in job["bad_rows"] or []] == [number + 1 for number in bad]
        assert metric(client, "laplora_job_rows_total") == count - len(bad) - before
        assert job["result"]["methods"] == methods(client, [item for i, item in enumerate(items) if i not in bad])
        assert not list(servers.folder.glob("*.jsonl"))


def test_a_kill_while_a_large_job_is_removed_loses_nothing_else(servers: Servers) -> None:
    flags = ["--batch-tokens", "4000", "--max-queue-rows", "6000", "--drain-s", "0"]
    process = servers.start(*flags)
    with process.client() as client:
        done = submit_to(client, rows(6))
        result = until(client, done, has("done"))["result"]
        servers.shut()
        large = submit_to(client, rows(6000))
        servers.open()
        until(client, large, lambda job: job["rows_done"] >= 5000)
        assert client.post(f"/evaluate/jobs/{large}/cancel").json()["status"] in ("cancelled", "done")
        kill(process)
    process = servers.start(*flags)
    with process.client() as client:
        assert client.get(f"/evaluate/jobs/{done}").json()["result"] == result
        assert client.get(f"/evaluate/jobs/{large}").json()["status"] in ("cancelled", "done")
        assert client.delete(f"/evaluate/jobs/{large}").json()["outcome"] == "removed"
        assert [job["id"] for job in client.get("/evaluate/jobs").json()["jobs"]] == [done]
        # The log is emptied once all of it is gone.
        while servers.folder.joinpath("jobs.sqlite-wal").stat().st_size:
            time.sleep(0.01)
    process.popen.terminate()
    process.left()
    assert servers.stored() == {done: ("done", 6, [])}
    with closing(sqlite3.connect(servers.folder / "jobs.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM rows").fetchone() == (0,)


def test_what_a_kill_leaves_of_an_upload_is_removed(servers: Servers) -> None:
    process = servers.start()

    def endless() -> Iterator[bytes]:
        yield lines(rows(50))
        while not list(servers.folder.glob("*.part")):
            time.sleep(0.005)
            yield lines(rows(1))
        kill(process)
        yield lines(rows(50))

    with process.client() as client, pytest.raises(httpx.TransportError):
        client.post("/evaluate/jobs", content=endless(), headers=JSONL)
    assert list(servers.folder.glob("*.part"))
    with servers.start().client() as client:
        assert client.get("/evaluate/jobs").json() == {"jobs": []}
        assert not list(servers.folder.glob("*.part"))


def test_a_client_that_goes_away_while_it_sends_leaves_nothing(servers: Servers) -> None:
    class GoneAwayError(Exception):
        pass

    def breaks_off() -> Iterator[bytes]:
        yield lines(rows(10))
        while not list(servers.folder.glob("*.part")):
            time.sleep(0.005)
        raise GoneAwayError

    with servers.start().client() as client:
        with pytest.raises(GoneAwayError):
            client.post("/evaluate/jobs", content=breaks_off(), headers=JSONL | {"idempotency-key": "k"})
        while list(servers.folder.glob("*.part")):
            time.sleep(0.005)
        again = client.post("/evaluate/jobs", content=lines(rows(3)), headers=JSONL | {"idempotency-key": "k"})
        assert again.json()["rows"] == 3


def test_a_refused_upload_is_answered_while_much_is_still_sent(servers: Servers) -> None:
    body = b"no json\n" * 2_000_000
    with servers.start().client() as client:
        for content in (body, iter([body[:1_000_000]] * 16)):
            response = client.post("/evaluate/jobs", content=content, headers=JSONL)
            assert response.status_code == 422
            assert response.json()["error"]["field"] == "lines.1"


def test_draining_stops_jobs_to_go_on_and_ends_the_streams(servers: Servers) -> None:
    process = servers.start("--batch-tokens", "40")
    with process.client() as client:
        job_id = submit_to(client, rows(500))
        until(client, job_id, lambda job: job["rows_done"] > 0)
        servers.shut()
        with client.stream("GET", f"/evaluate/jobs/{job_id}/events") as stream:
            events = stream.iter_lines()
            assert next(events) == "retry: 2000"
            process.popen.terminate()
            seen = [json.loads(line[6:]) for line in events if line.startswith("data: ")]
        assert seen[-1]["status"] == "queued"
        assert process.left() == 0
    ((status, done, stored),) = servers.stored().values()
    assert (status, stored) == ("queued", list(range(done)))
    assert 0 < done < 500
    servers.open()
    with servers.start().client() as client:
        assert until(client, job_id, has("done"))["result"]["rows"] == 500


def test_events_over_a_socket(servers: Servers) -> None:
    process = servers.start("--batch-tokens", "40")
    with process.client() as client:
        servers.shut()
        job_id = submit_to(client, rows(100))
        with client.stream("GET", f"/evaluate/jobs/{job_id}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            events = stream.iter_lines()
            first = next(line for line in events if line.startswith("data: "))
            assert json.loads(first[6:])["rows_done"] == 0
            servers.open()
            left = list(events)
        ids = [line[4:] for line in left if line.startswith("id: ")]
        seen = [json.loads(line[6:]) for line in left if line.startswith("data: ")]
        assert len(ids) == len(seen) == len(set(ids))
        assert [job["rows_done"] for job in seen] == sorted(job["rows_done"] for job in seen)
        assert any(0 < job["rows_done"] < 100 for job in seen)
        last = seen[-1]
        assert (last["status"], last["rows_done"], last["result"]) == ("done", 100, None)
        # What was read is not sent again, but the end is news to whoever has not read it.
        again = client.get(f"/evaluate/jobs/{job_id}/events").text
        assert f"id: {ids[-1]}\n" in again
        assert metric(client, "laplora_requests_in_flight") == 1


def test_one_caller_has_its_share_of_the_streams_and_a_reader_that_goes_away_gives_it_back(servers: Servers) -> None:
    with servers.start("--max-event-streams", "4").client() as client:
        servers.shut()
        job_id = submit_to(client, rows(5))
        path = f"/evaluate/jobs/{job_id}/events"
        with ExitStack() as streams:
            # Held: a reader that is forgotten closes its stream.
            readers = [streams.enter_context(client.stream("GET", path)).iter_lines() for _ in range(2)]
            assert [next(reader) for reader in readers] == ["retry: 2000"] * 2
            with client.stream("GET", path) as refused:
                assert refused.status_code == 429
                assert refused.headers["retry-after"]
                assert json.loads(refused.read())["error"]["code"] == "client_too_many_requests"
            other = {"transport": httpx.HTTPTransport(local_address="127.0.0.2"), "base_url": client.base_url}
            with httpx.Client(**other, timeout=None) as elsewhere, elsewhere.stream("GET", path) as allowed:
                assert next(allowed.iter_lines()) == "retry: 2000"
            while metric(client, "laplora_requests_in_flight") != 3:
                time.sleep(0.01)
        while metric(client, "laplora_requests_in_flight") > 1:
            time.sleep(0.01)
        with client.stream("GET", path) as again:
            assert next(again.iter_lines()) == "retry: 2000"
        servers.open()
        until(client, job_id, has("done"))


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
    process = servers.start("--batch-tokens", "40")
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
        paused = until(client, job_id, has("paused"))
        assert paused["paused"]["code"] == "storage_full"
        assert paused["rows_done"] < 3000
        predicted = client.post("/predict", json={"inputs": [{"text": "a"}]})
        assert predicted.status_code == 200
        assert client.get("/health/ready").status_code == 200
        disk.free(process)
        done = until(client, job_id, has("done"))
        assert done["result"]["rows"] == 3000
        assert "Traceback" not in process.log
