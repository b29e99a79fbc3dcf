"""Two engines behind one contract, each in processes of its own: a plain ASGI server, and a local Ray cluster."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from free_ports import free_port
from ray_library import NAMES
from server_process import GIVE_UP_S, ROOT, fake_artifacts, is_ready, until

Name = Literal["plain", "ray"]
#: Room for few rows, so that a test can fill it.
SETTINGS: dict[str, Any] = {"artifact": "fake", "auth": "off", "max_queue_rows": 32, "max_inputs": 16}
SETTINGS |= {"client_share": 1.0, "drain_s": 1.0, "request_timeout_s": 600.0, "stall_s": 600.0}
SCORERS = 2


@dataclass
class Engine:
    """A server that answers, and the folder that its predictors look at (``ray_library``)."""

    name: Name
    client: httpx.Client
    folder: Path
    process: subprocess.Popen[bytes]
    log: Path
    environment: dict[str, str]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold every device inside the block."""
        (self.folder / "hold").touch()
        try:
            yield
        finally:
            (self.folder / "hold").unlink()

    def predict(self, *texts: str, artifact: str | None = None, **options: Any) -> httpx.Response:
        body = {"inputs": [{"text": text} for text in texts], "options": options}
        return self.client.post("/predict", json=body if artifact is None else {**body, "artifact": artifact})

    def metrics(self, name: str) -> dict[str, float]:
        """Return a metric's series by their labels."""
        lines = [line for line in self.client.get("/metrics").text.splitlines() if line.startswith(name)]
        return {key.removeprefix(name): float(value) for key, _, value in (line.rpartition(" ") for line in lines)}


@contextmanager
def engine(name: Name, folder: Path) -> Iterator[Engine]:
    """Yield a server that is ready."""
    root, log = fake_artifacts(folder, *NAMES), folder / "log"
    port = free_port()
    tests = ROOT / "tests"
    path = os.pathsep.join(map(str, (ROOT, tests, tests / "service", tests / "service" / "backends")))
    values = {**SETTINGS, "artifacts_root": str(root), "jobs_dir": str(folder / "jobs")}
    environment = os.environ | {"FAKE_RAY": str(folder), "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    # Whoever joins the cluster later needs its token.
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if name == "ray":
        command = ["-m", "service.ray_serve", str(cluster_file(folder, {**values, "port": port}))]
    else:
        command = ["-m", "uvicorn", "--factory", "plain_app:create", "--port", str(port), "--log-level", "warning"]
        environment |= {f"LAPLORA_{key.upper()}": str(value) for key, value in values.items()}
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=out, stderr=out)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=GIVE_UP_S) as client:
            give_up = time.monotonic() + GIVE_UP_S
            while not is_ready(client):
                if process.poll() is not None or time.monotonic() > give_up:
                    pytest.fail(f"{name} is not ready, its exit status {process.returncode}:\n{log.read_text()}")
                time.sleep(0.05)
            yield Engine(name, client, folder, process, log, environment)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cluster_file(folder: Path, settings: dict[str, Any], **changes: Any) -> Path:
    cluster = {
        "settings": settings,
        "scorers": SCORERS,
        "scorer_cpus": 0.1,
        "ingress_cpus": 0.1,
        "library": "ray_library:fakes",
        **changes,
    }
    path = folder / "cluster.json"
    path.write_text(json.dumps(cluster))
    return path


@contextmanager
def short_folder() -> Iterator[Path]:
    """Yield a folder with a short path: Ray's sockets have room for no other."""
    folder = Path(tempfile.mkdtemp(prefix="lr-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def first_prob(answer: dict[str, object]) -> float:
    """Return the number that names a fake's row."""
    return round(100_000 * answer["predictions"][0]["probs"]["negative"])  # type: ignore[index, no-any-return]


def served_rows(served: Engine) -> int:
    """Return the rows that the queue holds."""
    return int(served.metrics("laplora_queue_max_rows")[""])


def replicas(served: Engine) -> dict[str, float]:
    """Return how many artifacts each replica has loaded, by its name."""
    return served.metrics("laplora_replica_artifacts")


def until_all_replicas(served: Engine, *, artifacts: int, without: Collection[str] = ()) -> None:
    every = [artifacts] * SCORERS
    until(lambda: list((now := replicas(served)).values()) == every and not set(now) & set(without))


def cluster_environment(served: Engine) -> dict[str, str]:
    text = served.log.read_text()
    address = re.search(r'"event": "ray_started", "address": "([^"]+)"', text)
    assert address is not None, text
    return served.environment | {"RAY_ADDRESS": address[1]}
