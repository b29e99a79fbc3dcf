"""Servers that are processes, started one after the other on one jobs folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from job_calls import JSONL, lines
from server_process import Process, fake_artifacts, fake_server


class Servers:
    """Starts fake servers, whose device runs while a gate is open."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.jobs_dir, self.gate = path / "jobs", path / "gate"
        self._artifacts, self._stack = fake_artifacts(path), stack
        self.environment: dict[str, str] = {}
        self.open()

    def start(self, *flags: str, poison: str = "") -> Process:
        environment = {"FAKE_GATE": str(self.gate), "LAPLORA_JOBS_DIR": str(self.jobs_dir), "FAKE_POISON": poison}
        environment |= self.environment
        return self._stack.enter_context(fake_server(self._artifacts, *flags, **environment))

    @property
    def folder(self) -> Path:
        """Where the server's own files are."""
        return self.jobs_dir / "laplora-jobs"

    def open(self) -> None:
        self.gate.touch()

    def shut(self) -> None:
        self.gate.unlink(missing_ok=True)

    def let_pass(self, token: int) -> None:
        """Let rows pass that wait for this token's own file, which are those of ``HELD`` (``fake_server``)."""
        self.gate.with_name(f"{self.gate.name}.{token}").touch()


def submit_to(client: httpx.Client, items: list[dict[str, Any]]) -> str:
    response = client.post("/evaluate/jobs", content=lines(items), headers=JSONL, params={"resamples": 10})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def job_until(
    client: httpx.Client, job_id: str, condition: Callable[[dict[str, Any]], bool], *, pause_s: float = 0.002
) -> dict[str, Any]:
    while True:
        job: dict[str, Any] = client.get(f"/evaluate/jobs/{job_id}").json()
        if condition(job):
            return job
        assert job["status"] not in ("done", "failed", "cancelled"), job
        time.sleep(pause_s)


def has(status: str) -> Callable[[dict[str, Any]], bool]:
    return lambda job: bool(job["status"] == status)


def check_whole(client: httpx.Client, job_id: str, items: list[dict[str, Any]], bad: tuple[int, ...]) -> None:
    """Wait for the end of a job; check that every row was answered once, in order, but for the bad ones."""
    good = [item for i, item in enumerate(items) if i not in bad]
    job = job_until(client, job_id, has("done"), pause_s=0.02)
    assert (job["rows_done"], job["rows_bad"], job["result"]["rows"]) == (len(items), len(bad), len(good))
    assert [row["line"] for row in job["bad_rows"]] == [number + 1 for number in bad]
    direct = client.post("/evaluate", json={"inputs": good, "options": {"resamples": 10}}).json()
    assert job["result"]["methods"] == direct["methods"]
    got = [json.loads(line) for line in client.get(f"/evaluate/jobs/{job_id}/results").text.splitlines()]
    assert [one["line"] for one in got] == list(range(1, len(items) + 1))
    assert [one["input"] for one in got] == items
    assert [one["line"] - 1 for one in got if one["answer"] is None] == list(bad)
