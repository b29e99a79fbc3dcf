"""A server in a process of its own, on a free port of 127.0.0.1."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from warm_start import Fork, can_fork

ROOT = Path(__file__).resolve().parents[2]
FAKE_SERVER = str(Path(__file__).resolve().with_name("fake_server.py"))
#: No sound server takes this long, however busy the machine is; a test has 120 seconds.
GIVE_UP_S = 110.0

#: Of the body of a request for an answer.
HALVES = b'{"inp', b'uts": [{"text": "b"}]}'

Start = Callable[..., "Process"]


def fake_artifacts(folder: Path, *names: str) -> Path:
    """Return a root with artifacts of these names, by default with the one that the fake servers have."""
    root = folder / "artifacts"
    for name in names or ("fake",):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "manifest.json").write_text("{}")
    return root


Serving = AbstractContextManager["Process"]


@dataclass
class Process:
    """A server process; ``lines`` holds its log so far."""

    popen: subprocess.Popen[str] | Fork
    lines: list[str]
    reader: threading.Thread

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def event(self, name: str) -> dict[str, object]:
        """Return the first log event of this name, as soon as there is one."""
        give_up = time.monotonic() + GIVE_UP_S
        while time.monotonic() < give_up:
            for line in list(self.lines):
                if line.startswith("{") and (event := json.loads(line)).get("event") == name:
                    return dict(event)
            if self.popen.poll() is not None:
                pytest.fail(f"the server left with {self.popen.returncode}:\n{self.log}")
            time.sleep(0.01)
        pytest.fail(f"no event {name!r}:\n{self.log}")

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """Yield a client, once the server is ready."""
        with httpx.Client(base_url=str(self.event("listening")["address"]), timeout=GIVE_UP_S) as client:
            give_up = time.monotonic() + GIVE_UP_S
            while not is_ready(client):
                if self.popen.poll() is not None or time.monotonic() > give_up:
                    pytest.fail(f"the server is not ready, its exit status {self.popen.returncode}:\n{self.log}")
                time.sleep(0.02)
            yield client

    def left(self) -> int:
        """Return the exit status, once the process has left and all of its log is read."""
        status = self.popen.wait(GIVE_UP_S)
        self.reader.join()
        return status


def predict(client: httpx.Client, text: str = "a") -> httpx.Response:
    return client.post("/predict", json={"inputs": [{"text": text}]})


def predicted(client: httpx.Client, *texts: str, **options: Any) -> dict[str, Any]:
    """Return the answer to texts, whose numbers are all finite."""
    response = client.post(
        "/predict", json={"inputs": [{"text": text} for text in texts], "options": {"detail": "full", **options}}
    )
    assert response.status_code == 200, response.text
    body: dict[str, Any] = json.loads(response.text, parse_constant=pytest.fail)
    return body


def metric(client: httpx.Client, name: str) -> float:
    """Return the sum of a metric's series, 0 where nothing was counted yet; the name may have labels."""
    series = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", client.get("/metrics").text, re.M)
    return sum(map(float, series))


def in_flight(client: httpx.Client, count: int) -> None:
    """Wait until so many other requests are being answered."""
    until(lambda: metric(client, "laplora_requests_in_flight") == count + 1)


@contextmanager
def half_a_request(
    client: httpx.Client, path: str = "/predict", media_type: str = "application/json"
) -> Iterator[HTTPConnection]:
    """Yield a connection on which the first of ``HALVES`` of a request's body was sent; its id is ``half``."""
    with closing(HTTPConnection(client.base_url.host, client.base_url.port or 0)) as connection:
        connection.putrequest("POST", path)
        length = str(sum(map(len, HALVES)))
        for name, value in (("content-type", media_type), ("content-length", length), ("x-request-id", "half")):
            connection.putheader(name, value)
        connection.endheaders(HALVES[0])
        yield connection


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + GIVE_UP_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """Yield what starts servers by flags and variables of the environment; they share a root."""
    root = fake_artifacts(folder)
    with ExitStack() as stack:
        yield lambda *flags, **environment: stack.enter_context(fake_server(root, *flags, **environment))


def is_ready(client: httpx.Client) -> bool:
    """Return whether the server answers and says that it is ready."""
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def server_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    """Yield a process of this Python with these arguments; it is gone afterwards, whatever happened."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LAPLORA_") or k == "LAPLORA_CACHE"}
    paths = [str(ROOT), str(Path(__file__).parent), kept.get("PYTHONPATH", "")]
    port = [] if "--port" in command else ["--port", "0"]
    with tempfile.TemporaryDirectory(prefix="laplora-jobs-") as state:
        variables = {
            "LAPLORA_AUTH": "off",
            # No load balancer has to notice: what is about that says so itself.
            "LAPLORA_DRAIN_DELAY_S": "0",
            **kept,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "LAPLORA_JOBS_DIR": state,
            **(environment or {}),
        }
        popen: subprocess.Popen[str] | Fork
        if can_fork(command, environment or {}):
            popen = Fork([*command, *port], variables)
        else:
            whole = [sys.executable, *command, *port]
            popen = subprocess.Popen(whole, env=variables, stderr=subprocess.PIPE, text=True)
        stderr = popen.stderr
        assert stderr is not None
        with stderr:
            lines: list[str] = []
            reader = threading.Thread(target=lambda: lines.extend(map(str.rstrip, stderr)))
            reader.start()
            try:
                yield Process(popen, lines, reader)
            finally:
                popen.kill()
                popen.wait()
                reader.join()


def fake_server(root: Path, *flags: str, **environment: str) -> Serving:
    """Start the real process over a fake predictor; the root has an artifact ``fake``, see ``fake_artifacts``."""
    return server_process([FAKE_SERVER, "--artifact", "fake", "--artifacts-root", str(root), *flags], environment)
