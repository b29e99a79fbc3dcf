"""Servers that share a database serve the same: one activates, learns and dies under load, and a new one goes on."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import Process, server_process, until
from test_entry import rows_of
from tiny_runs import FinishedRun

pytestmark = pytest.mark.process
TEXT = {"text": "The film was superb."}


def change(client: httpx.Client, what: str, **request: Any) -> dict[str, Any]:
    """Ask for a change, wait for its end, and return its result."""
    where = client.post(f"/artifacts/{what}", **request).headers["location"]
    until(lambda: client.get(where).json()["status"] not in ("queued", "running"))
    status = client.get(where).json()
    assert status["status"] == "succeeded", status
    result: dict[str, Any] = status["result"]
    return result


def active(client: httpx.Client) -> str:
    """Return the digest of the artifact that answers where none is named."""
    listed = client.get("/artifacts").json()
    return next(str(one["digest"]) for one in listed["artifacts"] if one["active"])


def test_one_activates_learns_and_dies_and_no_answer_is_of_a_mix(
    sentiment_run: FinishedRun, mixture_run: FinishedRun, tmp_path: Path, url: str
) -> None:
    for run in (sentiment_run, mixture_run):
        shutil.copytree(run.artifact, tmp_path / "artifacts" / run.artifact.name)
    first, second = sentiment_run.artifact.name, mixture_run.artifact.name
    command = ["-m", "service", "--artifact", first, "--artifacts-root", str(tmp_path / "artifacts"), "--device", "cpu"]
    command += ["--conditioning", "true", "--job-look-s", "0.1", "--batch-tokens", "1"]
    environment = {"LAPLORA_JOBS_URL": url, "LAPLORA_JOBS_DIR": str(tmp_path / "jobs")}
    seen: dict[str, set[float]] = {}
    done = threading.Event()

    def ask(process: Process) -> None:
        """Ask without an end; a server that was killed ends it."""
        with process.client() as client:
            while not done.is_set():
                try:
                    answer = client.post("/predict", json={"inputs": [TEXT], "options": {"predictive": "conditioned"}})
                except httpx.TransportError:
                    return
                assert answer.status_code == 200, answer.text
                body = answer.json()
                probability = round(body["predictions"][0]["probs"]["positive"], 5)
                seen.setdefault(body["artifact"]["digest"], set()).add(probability)
                time.sleep(0.02)

    with ExitStack() as stack:
        servers = [stack.enter_context(server_process(command, environment)) for _ in range(2)]
        one, other = (stack.enter_context(server.client()) for server in servers)
        asking = [threading.Thread(target=ask, args=(server,)) for server in servers]
        for thread in asking:
            thread.start()
        stack.callback(done.set)
        packaged = active(one)
        assert active(other) == packaged
        until(lambda: packaged in seen)
        activated = change(one, f"{second}/activate")["artifact"]["digest"]
        until(lambda: active(other) == activated)
        change(one, f"{first}/activate")
        until(lambda: active(other) == packaged)
        rows = {"rows": rows_of(sentiment_run)["test"], "force": True}
        learned = change(one, f"{first}/condition", json=rows)["artifact"]["digest"]
        servers[0].popen.send_signal(signal.SIGKILL)
        servers[0].left()
        until(lambda: active(other) == learned)
        third = stack.enter_context(server_process(command, environment))
        with third.client() as client:
            assert active(client) == learned
            assert {item["name"] for item in client.get("/artifacts").json()["artifacts"] if item["loaded"]} == {
                first,
                second,
            }
            # The survivor's changes reach the newcomer too.
            assert change(other, f"{first}/condition/undo", json={})["artifact"]["digest"] == packaged
            until(lambda: active(client) == packaged)
        done.set()
        for thread in asking:
            thread.join()
    assert set(seen) == {packaged, activated, learned}
    assert all(len(numbers) == 1 for numbers in seen.values()), seen
    assert len({min(numbers) for numbers in seen.values()}) == 3
