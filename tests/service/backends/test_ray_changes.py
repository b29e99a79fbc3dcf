"""What scorers on a Ray cluster promise while they are killed, updated and scaled: no request is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import (
    SCORERS,
    SETTINGS,
    Engine,
    cluster_environment,
    cluster_file,
    engine,
    first_prob,
    replicas,
    served_rows,
    short_folder,
    until_all_replicas,
)
from ray_library import FAULTY, KILLER
from server_process import GIVE_UP_S, until
from serving import code

from service.exit_status import ExitStatus

pytestmark = [pytest.mark.process, pytest.mark.exhaustive]


@pytest.fixture
def served() -> Iterator[Engine]:
    """An engine of the test's own, which it may leave in pieces."""
    with short_folder() as folder, engine("ray", folder) as one:
        yield one


def ingress(served: Engine) -> float:
    """Return when the ingress that answers this was started, which tells it from another one."""
    return served.metrics("process_start_time_seconds")[""]


def until_another_ingress(served: Engine, former: float) -> None:
    """Wait until another ingress than a former one answers, each time: in an update both do for a moment."""
    give_up, others = time.monotonic() + GIVE_UP_S, 0
    while others < 20:
        others = 0 if ingress(served) == former else others + 1
        assert time.monotonic() < give_up
        time.sleep(0.1)


@contextmanager
def flowing(served: Engine) -> Iterator[list[httpx.Response]]:
    """Send requests for as long as the block lasts, and yield the list that their answers come into."""
    answers, over = list[httpx.Response](), threading.Event()

    def send() -> None:
        while not over.is_set():
            answers.append(served.predict("a 12"))

    with ThreadPoolExecutor(4) as pool:
        senders = [pool.submit(send) for _ in range(4)]
        try:
            yield answers
        finally:
            over.set()
    for sender in senders:
        sender.result()


def test_replicas_that_are_killed_or_lose_the_device_lose_no_request_of_others_and_come_back(served: Engine) -> None:
    """And SIGTERM answers what is under way, and ends clean."""
    until_all_replicas(served, artifacts=1)
    before = replicas(served)
    with ThreadPoolExecutor(24) as pool:
        with served.held():
            (served.folder / "kill").touch()
            texts = [f"a {KILLER}", *(f"a {token}" for token in range(10, 33))]
            running = [pool.submit(served.predict, text) for text in texts]
            until(lambda: served.metrics("laplora_reserved_rows")[""] == len(texts))
        answers = [one.result() for one in running]
    assert not (served.folder / "kill").exists()
    assert {answer.status_code for answer in answers} == {200}
    assert [first_prob(answer.json()) for answer in answers] == [KILLER, *range(10, 33)]
    until(lambda: not set(before) <= set(replicas(served)))
    until_all_replicas(served, artifacts=1)
    before = replicas(served)
    assert code(served.predict(f"a {FAULTY}")) == (503, "device_fault"), "given up after two"
    until_all_replicas(served, artifacts=1, without=before)
    with ThreadPoolExecutor(1) as pool:
        with served.held():
            last = pool.submit(served.predict, "a 12")
            until(lambda: served.metrics("laplora_reserved_rows")[""] == 1)
            served.process.terminate()
        assert last.result().status_code == 200
    assert served.process.wait(GIVE_UP_S) == ExitStatus.CLEAN, served.log.read_text()


@contextmanager
def update(served: Engine, **changes: Any) -> Iterator[None]:
    """Put the application in the place of the one that runs, with changes; it goes on after the block."""
    settings = json.loads((served.folder / "cluster.json").read_text())["settings"] | changes.pop("settings", {})
    file, environment = cluster_file(served.folder, settings, **changes), cluster_environment(served)
    command = [sys.executable, "-m", "service.ray_serve", str(file)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize(
    "changes",
    [{"settings": {"max_inputs": 15}, "max_surge_percent": 100}, {"scorer_cpus": 0.11}],
    ids=["of all, the new ones first", "of the scorers, each old one first"],
)
def test_an_update_fails_no_request(served: Engine, changes: dict[str, Any]) -> None:
    until_all_replicas(served, artifacts=1)
    before, former = replicas(served), ingress(served)
    with flowing(served) as answers, update(served, **changes):
        if "max_surge_percent" in changes:  # the ingress is told something new too
            until_another_ingress(served, former)
        until_all_replicas(served, artifacts=1, without=before)
        count = len(answers)
        until(lambda: len(answers) >= count + 20)
    assert {answer.status_code for answer in answers} == {200}


def scale(served: Engine, scorers: int) -> None:
    """Give an engine so many scorers by Ray Serve's own configuration: whose ``args`` stay, so that all else does."""
    args = json.loads((served.folder / "cluster.json").read_text())
    application = {"name": "laplora", "route_prefix": "/", "import_path": "service.ray_serve.app:build", "args": args}
    application["deployments"] = [{"name": "scorer", "num_replicas": scorers}]
    file = served.folder / "serve.json"
    file.write_text(json.dumps({"applications": [application]}))
    command = [sys.executable, str(Path(__file__).with_name("deploy.py")), str(file)]
    subprocess.run(command, env=cluster_environment(served), check=True, capture_output=True)


def test_a_full_cluster_that_is_scaled_down_loses_no_request(served: Engine) -> None:
    """One of two scorers goes while both hold all that they may: it answers what it has, and is gone then."""
    until_all_replicas(served, artifacts=1)
    before, former = replicas(served), ingress(served)
    scale(served, SCORERS)  # all anew: from here on the configuration is Ray Serve's own
    until_another_ingress(served, former)
    until_all_replicas(served, artifacts=1, without=before)
    until(lambda: served_rows(served) == SCORERS * SETTINGS["max_queue_rows"])
    both, rows = set(replicas(served)), served_rows(served)
    with ThreadPoolExecutor(rows) as pool:
        with served.held():
            running = [pool.submit(served.predict, f"a {token}") for token in range(10, 10 + rows)]
            until(lambda: served.metrics("laplora_reserved_rows")[""] == rows)
            scale(served, 1)
            until(lambda: served_rows(served) == SETTINGS["max_queue_rows"])
            assert served.metrics("laplora_reserved_rows")[""] == rows
            assert code(served.predict("a")) == (429, "queue_full")
        answers = [one.result() for one in running]
    assert {answer.status_code for answer in answers} == {200}
    assert [first_prob(answer.json()) for answer in answers] == [*range(10, 10 + rows)]
    until(lambda: len(replicas(served)) == 1)
    assert set(replicas(served)) < both
