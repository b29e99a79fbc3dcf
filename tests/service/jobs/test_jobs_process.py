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
from typing import Any

import httpx
import pytest
from server_process import Process, server_process
from test_jobs import JSONL, lines, rows

FAKE_SERVER = Path(__file__).resolve().parents[1] / "fake_server.py"


@dataclass
class Servers:
    """Starts servers one after the other on one jobs folder, behind one gate."""

    jobs_dir: Path
    gate: Path
    run: Callable[..., Process]

    def start(self, *flags: str, poison: str = "") -> Process:
        environment = {"FAKE_GATE": str(self.gate), "LAPLORA_JOBS_DIR": str(self.jobs_dir), "FAKE_POISON": poison}
        return self.run(*flags, **environment)

    @property
    def folder(self) -> Path:
        """Where the server's own files are."""
        return self.jobs_dir / "laplora-jobs"

    def open(self) -> None:
        self.gate.touch()

    def shut(self) -> None:
        self.gate.unlink(missing_ok=True)

    def stored(self) -> dict[str, tuple[str, int, list[int]]]:
        """Return, of a folder that no server has, each job's status, rows done, and rows."""
        with closing(sqlite3.connect(self.folder / "jobs.sqlite")) as db:
            jobs = db.execute("SELECT number, id, status, rows_done FROM jobs").fetchall()
            return {
                job_id: (status, done, [r for (r,) in db.execute("SELECT row FROM rows WHERE job = ?", (number,))])
                for number, job_id, status, done in jobs
            }


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    (tmp_path / "artifacts" / "fake").mkdir(parents=True)
    (tmp_path / "artifacts" / "fake" / "manifest.json").write_text("{}")
    with ExitStack() as stack:

        def run(*flags: str, **environment: str) -> Process:
            command = [str(FAKE_SERVER), "--artifact", "fake", "--artifacts-root", str(tmp_path / "artifacts")]
            return stack.enter_context(server_process([*command, *flags], environment))

        servers = Servers(tmp_path / "jobs", tmp_path / "gate", run)
        servers.open()
        yield servers


def submit(client: httpx.Client, items: list[dict[str, Any]], **query: Any) -> str:
    response = client.post("/evaluate/jobs", content=lines(items), headers=JSONL, params=query)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def until(client: httpx.Client, job_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    while True:
        job: dict[str, Any] = client.get(f"/evaluate/jobs/{job_id}").json()
        if condition(job):
            return job
        assert job["status"] not in ("failed", "cancelled"), job
        time.sleep(0.002)


def is_done(job: dict[str, Any]) -> bool:
    return bool(job["status"] == "done")


def value(client: httpx.Client, name: str) -> float:
    found = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(found[0].split()[1])


def test_killed_jobs_go_on_without_a_lost_or_doubled_row(servers: Servers) -> None:
    items = rows(2500)
    flags = ["--batch-tokens", "40", "--max-inputs", "2500", "--max-queue-rows", "6000", "--drain-s", "0"]
    before, job_id = 0, ""
    for kill_at in (1, 300, 900):
        process = servers.start(*flags)
        with process.client() as client:
            job_id = job_id or submit(client, items, resamples=10)
            until(client, job_id, lambda job: job["rows_done"] >= kill_at)  # noqa: B023
            process.popen.send_signal(signal.SIGKILL)
            process.popen.wait()
        ((status, done, stored),) = servers.stored().values()
        assert status == "queued"
        assert before <= kill_at <= done < len(items)
        assert stored == list(range(done))
        before = done
    process = servers.start(*flags)
    with process.client() as client:
        job = until(client, job_id, is_done)
        assert job["rows_done"] == job["result"]["rows"] == len(items)
        assert value(client, "laplora_job_rows_total") == len(items) - before
        direct = client.post("/evaluate", json={"inputs": items, "options": {"resamples": 10}}).json()
        assert job["result"]["methods"] == direct["methods"]
        assert servers.folder.joinpath("jobs.sqlite").exists()
        assert not list(servers.folder.glob("*.jsonl"))


def test_a_kill_forgets_no_bad_row(servers: Servers) -> None:
    items = rows(600)
    bad = (3, 150, 151, 420, 599)
    for number in bad:
        items[number] = {"text": f"row {90_500 + number}", "label": "positive"}
    poison = ",".join(str(90_500 + number) for number in bad)
    flags = ["--batch-tokens", "40", "--max-inputs", "600", "--drain-s", "0"]
    job_id = ""
    for kill_at in (100, 300):
        process = servers.start(*flags, poison=poison)
        with process.client() as client:
            job_id = job_id or submit(client, items, resamples=10)
            until(client, job_id, lambda job: job["rows_done"] >= kill_at)  # noqa: B023
            process.popen.send_signal(signal.SIGKILL)
            process.popen.wait()
        ((_, done, stored),) = servers.stored().values()
        assert stored == [row for row in range(done) if row not in bad]
    process = servers.start(*flags, poison=poison)
    with process.client() as client:
        job = until(client, job_id, is_done)
        assert (job["rows_done"], job["rows_bad"], job["result"]["rows"]) == (600, 5, 595)
        assert [row["line"] for row in job["bad_rows"]] == [number + 1 for number in bad]
        good = [item for i, item in enumerate(items) if i not in bad]
        direct = client.post("/evaluate", json={"inputs": good, "options": {"resamples": 10}}).json()
        assert job["result"]["methods"] == direct["methods"]


def test_a_kill_while_a_large_job_is_removed_loses_nothing_else(servers: Servers) -> None:
    flags = ["--batch-tokens", "4000", "--max-queue-rows", "6000", "--drain-s", "0"]
    process = servers.start(*flags)
    with process.client() as client:
        done = submit(client, rows(6), resamples=10)
        result = until(client, done, is_done)["result"]
        servers.shut()
        large = submit(client, rows(6000), resamples=10)
        servers.open()
        until(client, large, lambda job: job["rows_done"] >= 5000)
        assert client.post(f"/evaluate/jobs/{large}/cancel").json()["status"] in ("cancelled", "done")
        process.popen.send_signal(signal.SIGKILL)
        process.popen.wait()
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


def test_a_folder_of_a_users_data_stays_as_it_was(servers: Servers) -> None:
    servers.jobs_dir.mkdir()
    for name in ("train.jsonl", "validation.jsonl", "download.part", "7f3c1f0ab5a94f6fa7c3d1b2c4e5f607.jsonl"):
        (servers.jobs_dir / name).write_text("a user's data\n")
    process = servers.start()
    with process.client() as client:
        refused = client.post("/evaluate/jobs", content=lines(rows(3)), headers=JSONL)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "jobs_unavailable")
        assert client.post("/predict", json={"inputs": [{"text": "a"}]}).status_code == 200
        told = process.event("jobs_unavailable")
        assert "download.part" in str(told["files"])
    process.popen.terminate()
    assert process.left() == 0
    assert {path.name: path.read_text() for path in servers.jobs_dir.iterdir()} == dict.fromkeys(
        ("train.jsonl", "validation.jsonl", "download.part", "7f3c1f0ab5a94f6fa7c3d1b2c4e5f607.jsonl"),
        "a user's data\n",
    )


def test_what_a_kill_leaves_of_an_upload_is_removed(servers: Servers) -> None:
    process = servers.start()

    def endless() -> Iterator[bytes]:
        yield lines(rows(50))
        while not list(servers.folder.glob("*.part")):
            time.sleep(0.005)
            yield lines(rows(1))
        process.popen.kill()
        process.popen.wait()
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
        job_id = submit(client, rows(500), resamples=10)
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
        assert until(client, job_id, is_done)["result"]["rows"] == 500


def test_events_over_a_socket(servers: Servers) -> None:
    process = servers.start("--batch-tokens", "40")
    with process.client() as client:
        servers.shut()
        job_id = submit(client, rows(100), resamples=10)
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
        assert value(client, "laplora_requests_in_flight") == 1


def test_one_caller_has_its_share_of_the_streams_and_another_still_gets_in(servers: Servers) -> None:
    with servers.start("--max-event-streams", "4").client() as client:
        servers.shut()
        path = f"/evaluate/jobs/{submit(client, rows(5))}/events"
        with ExitStack() as streams:
            readers = [streams.enter_context(client.stream("GET", path)).iter_lines() for _ in range(2)]
            assert [next(reader) for reader in readers] == ["retry: 2000"] * 2
            with client.stream("GET", path) as refused:
                assert refused.status_code == 429
                assert refused.headers["retry-after"]
                assert json.loads(refused.read())["error"]["code"] == "client_too_many_requests"
            other = {"transport": httpx.HTTPTransport(local_address="127.0.0.2"), "base_url": client.base_url}
            with httpx.Client(**other, timeout=None) as elsewhere, elsewhere.stream("GET", path) as allowed:
                assert next(allowed.iter_lines()) == "retry: 2000"
        while value(client, "laplora_requests_in_flight") > 1:
            time.sleep(0.01)
        with client.stream("GET", path) as again:
            assert next(again.iter_lines()) == "retry: 2000"


def test_a_reader_that_goes_away_leaves_nothing_behind(servers: Servers) -> None:
    with servers.start().client() as client:
        servers.shut()
        job_id = submit(client, rows(5))
        with ExitStack() as streams:
            # Held: a reader that is forgotten closes its stream.
            readers = [
                streams.enter_context(client.stream("GET", f"/evaluate/jobs/{job_id}/events")).iter_lines()
                for _ in range(5)
            ]
            assert [next(reader) for reader in readers] == ["retry: 2000"] * 5
            assert value(client, "laplora_requests_in_flight") == 6
        while value(client, "laplora_requests_in_flight") > 1:
            time.sleep(0.01)
        servers.open()
        until(client, job_id, is_done)


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
        job_id = submit(client, rows(3000), resamples=10)
        names = sorted(path.name for path in servers.folder.iterdir())
        disk.fill(process)
        refused = client.post("/evaluate/jobs", content=lines(rows(5000)), headers=JSONL)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_full")
        assert int(refused.headers["retry-after"]) > 0
        assert sorted(path.name for path in servers.folder.iterdir()) == names
        assert len(client.get("/evaluate/jobs").json()["jobs"]) == 1

        servers.open()
        paused = until(client, job_id, lambda job: job["status"] == "paused")
        assert paused["paused"]["code"] == "storage_full"
        assert paused["rows_done"] < 3000
        predicted = client.post("/predict", json={"inputs": [{"text": "a"}]})
        assert predicted.status_code == 200
        assert client.get("/health/ready").status_code == 200
        disk.free(process)
        done = until(client, job_id, is_done)
        assert done["result"]["rows"] == 3000
        assert "Traceback" not in process.log
