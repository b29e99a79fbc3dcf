"""What every engine promises: one suite, against a plain server and against scorers on a local Ray cluster."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import SCORERS, SETTINGS, Engine, cluster_file, engine, short_folder
from ray_library import FAULTY, KILLER
from server_process import GIVE_UP_S
from serving import code

from service.exit_status import ExitStatus

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", params=["plain", "ray"])
def served(request: pytest.FixtureRequest) -> Iterator[Engine]:
    folder = short_folder()
    try:
        with engine(request.param, folder) as one:
            yield one
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def first_prob(answer: dict[str, object]) -> float:
    """Return the number that names a fake's row."""
    return round(100_000 * answer["predictions"][0]["probs"]["negative"])  # type: ignore[index, no-any-return]


def test_each_request_has_its_own_answer_of_its_own_artifact(served: Engine) -> None:
    assert served.client.post("/artifacts/second/load").status_code == 200
    wanted = [(token, ("fake", "second")[token % 2]) for token in range(100, 160)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda one: served.predict(f"a {one[0]}", artifact=one[1]), wanted))
    assert {answer.status_code for answer in answers} == {200}
    assert [(first_prob(a.json()), a.json()["artifact"]["name"]) for a in answers] == wanted
    assert {answer.json()["artifact"]["digest"] for answer in answers} == {"sha256:fake", "sha256:second"}


def test_a_header_of_rays_changes_nothing(served: Engine) -> None:
    for name in ("serve_multiplexed_model_id", "serve-multiplexed-model-id"):
        for value in ("unknown", "a" * 1000):
            answer = served.client.post("/predict", json={"inputs": [{"text": "a 123"}]}, headers={name: value})
            assert (answer.status_code, first_prob(answer.json())) == (200, 123)


def test_an_artifact_that_is_not_loaded_is_refused_and_one_that_was_unloaded_too(served: Engine) -> None:
    assert code(served.predict("a", artifact="third")) == (404, "artifact_not_found")
    served.client.post("/artifacts/second/load")
    assert served.client.post("/artifacts/second/unload").status_code == 200
    assert code(served.predict("a", artifact="second")) == (409, "artifact_not_loaded")
    listed = {one["name"]: one["loaded"] for one in served.client.get("/artifacts").json()["artifacts"]}
    assert listed == {"fake": True, "second": False}


def test_input_is_refused_with_the_field_at_fault(served: Engine) -> None:
    answer = served.client.post("/predict", json={"inputs": [{"text": "a"}, {"text": "a " * 100}]})
    assert code(answer) == (422, "too_many_tokens")
    assert answer.json()["error"]["field"] == "inputs.1"


def test_feedback_finds_every_prediction(served: Engine) -> None:
    ids = [served.predict(f"a {token}").json()["predictions"][0]["prediction_id"] for token in range(10)]
    items = [{"prediction_id": one, "label": "positive"} for one in ids]
    answer = served.client.post("/feedback", json={"items": items})
    assert answer.status_code == 200
    assert [one["status"] for one in answer.json()["results"]] == ["recorded"] * 10


def test_a_job_scores_every_row_once(served: Engine) -> None:
    rows = [{"text": f"a {token}", "label": "positive"} for token in range(200)]
    body = "".join(json.dumps(row) + "\n" for row in rows)
    sent = served.client.post(
        "/evaluate/jobs", content=body, headers={"content-type": "application/jsonl"}, params={"resamples": 10}
    )
    job = served.client.get(f"/evaluate/jobs/{sent.json()['id']}").json()
    while job["status"] in ("queued", "running"):
        time.sleep(0.05)
        job = served.client.get(f"/evaluate/jobs/{sent.json()['id']}").json()
    assert (job["status"], job["rows_done"]) == ("done", 200), job
    results = served.client.get(f"/evaluate/jobs/{job['id']}/results").text.splitlines()
    assert [json.loads(line)["input"]["text"] for line in results] == [row["text"] for row in rows]


def test_what_does_not_fit_is_refused_with_a_time_to_come_back_and_the_rest_is_answered(served: Engine) -> None:
    requests = 2 * served_rows(served)
    with ThreadPoolExecutor(requests) as pool:
        with served.held():
            running = [pool.submit(served.predict, f"a {token}") for token in range(requests)]
            while not any(one.done() for one in running):
                time.sleep(0.02)
            refused = next(one.result() for one in running if one.done())
            assert code(refused) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
        answers = [one.result() for one in running]
    assert {answer.status_code for answer in answers} == {200, 429}
    for token, answer in enumerate(answers):
        assert answer.status_code == 429 or first_prob(answer.json()) == (token if token > 1 else 0)
    assert served.predict("a 7").status_code == 200


def served_rows(served: Engine) -> int:
    """Return the rows that the queue holds."""
    return int(served.metrics("laplora_queue_max_rows")[""])


def test_a_deadline_ends_the_wait_and_frees_the_room(served: Engine) -> None:
    with served.held():
        assert code(served.predict("a", timeout_s=0.5)) == (504, "deadline_exceeded")
    while served.metrics("laplora_reserved_rows")[""]:
        time.sleep(0.02)


def test_the_metrics_tell_of_requests_and_batches(served: Engine) -> None:
    before = sum(served.metrics("laplora_batches_total").values())
    served.predict("a", "b")
    while sum(served.metrics("laplora_batches_total").values()) == before:
        time.sleep(0.05)
    assert served.metrics("laplora_ready") == {"": 1.0}


def test_a_lost_device_ends_the_plain_server_with_its_status(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As ``service.asgi`` has it, under a server that knows nothing of laplora."""
    with engine("plain", tmp_path_factory.mktemp("lost")) as lost:
        assert code(lost.predict("a 99556")) == (503, "device_fault")
        assert lost.process.wait(60) == ExitStatus.DEVICE_FAULT


# What only several replicas promise.
on_ray = pytest.mark.parametrize("served", ["ray"], indirect=True)


def replicas(served: Engine) -> dict[str, float]:
    """Return how many artifacts each replica has loaded, by its name."""
    return served.metrics("laplora_replica_artifacts")


def until_all_replicas(served: Engine, *, artifacts: int, without: Collection[str] = ()) -> None:
    """Wait until there are all replicas, each with so many artifacts, and none of these."""
    give_up = time.monotonic() + GIVE_UP_S
    while list((now := replicas(served)).values()) != [artifacts] * SCORERS or set(now) & set(without):
        assert time.monotonic() < give_up, now
        time.sleep(0.1)


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


@on_ray
def test_what_is_loaded_is_loaded_at_every_replica(served: Engine) -> None:
    assert served.client.post("/artifacts/second/load").status_code == 200
    until_all_replicas(served, artifacts=2)
    assert set(served.metrics("laplora_replica_queue_tokens")) == set(replicas(served))


def until_room_for(served: Engine, *, scorers: int) -> None:
    """Wait until the queue has the room of so many scorers."""
    give_up = time.monotonic() + GIVE_UP_S
    while (rows := served_rows(served)) != scorers * SETTINGS["max_queue_rows"]:
        assert time.monotonic() < give_up, rows
        time.sleep(0.1)


@on_ray
def test_the_room_is_that_of_all_replicas(served: Engine) -> None:
    until_room_for(served, scorers=SCORERS)


@on_ray
def test_a_replica_that_is_killed_under_load_loses_no_request(served: Engine) -> None:
    served.client.post("/artifacts/second/unload")
    before = replicas(served)
    with ThreadPoolExecutor(24) as pool:
        with served.held():
            (served.folder / "kill").touch()
            texts = [f"a {KILLER}", *(f"a {token}" for token in range(10, 33))]
            running = [pool.submit(served.predict, text) for text in texts]
            while served.metrics("laplora_reserved_rows")[""] < len(texts):
                time.sleep(0.02)
        answers = [one.result() for one in running]
    assert not (served.folder / "kill").exists()
    assert {answer.status_code for answer in answers} == {200}
    assert [first_prob(answer.json()) for answer in answers] == [KILLER, *range(10, 33)]
    until_all_replicas(served, artifacts=1)
    assert set(replicas(served)) != set(before)


@on_ray
def test_rows_that_lose_the_device_are_given_up_and_the_replicas_come_back(served: Engine) -> None:
    before = replicas(served)
    assert code(served.predict(f"a {FAULTY}")) == (503, "device_fault")
    until_all_replicas(served, artifacts=1, without=before)
    assert served.predict("a 12").status_code == 200


def cluster_environment(served: Engine) -> dict[str, str]:
    """Return the environment of a process that joins an engine's cluster."""
    text = served.log.read_text()
    address = re.search(r'"event": "ray_started", "address": "([^"]+)"', text)
    assert address is not None, text
    return served.environment | {"RAY_ADDRESS": address[1]}


@on_ray
def test_another_address_than_the_clusters_is_refused(served: Engine) -> None:
    """It would have no effect, and whoever thinks that this machine alone is answered would be wrong."""
    flags = ["--artifact", "fake", "--auth", "off", "--host", "127.0.0.2", "--port", str(served.client.base_url.port)]
    command = [sys.executable, "-m", "service.ray_serve", *flags]
    refused = subprocess.run(command, env=cluster_environment(served), capture_output=True, text=True)
    assert refused.returncode == ExitStatus.USAGE, refused.stderr
    assert "listens on 127.0.0.1 port" in refused.stderr
    assert served.predict("a 12").status_code == 200


@contextmanager
def update(served: Engine, **changes: Any) -> Iterator[None]:
    """Put the application in the place of the one that runs, with changes; it goes on after the block."""
    settings = json.loads((served.folder / "cluster.json").read_text())["settings"]
    file, environment = cluster_file(served.folder, settings, **changes), cluster_environment(served)
    command = [sys.executable, "-m", "service.ray_serve", str(file)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@on_ray
@pytest.mark.parametrize(
    "changes",
    [{"artifacts_per_scorer": 7, "max_surge_percent": 100}, {"artifacts_per_scorer": 7, "scorer_cpus": 0.11}],
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
        while len(answers) < count + 20:
            time.sleep(0.05)
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


@on_ray
def test_a_full_cluster_that_is_scaled_down_loses_no_request(served: Engine) -> None:
    """One of two scorers goes while both hold all that they may: it answers what it has, and is gone then."""
    until_all_replicas(served, artifacts=1)
    before, former = replicas(served), ingress(served)
    scale(served, SCORERS)  # all anew: from here on the configuration is Ray Serve's own
    until_another_ingress(served, former)
    until_all_replicas(served, artifacts=1, without=before)
    until_room_for(served, scorers=SCORERS)
    both, rows = set(replicas(served)), served_rows(served)
    with ThreadPoolExecutor(rows) as pool:
        with served.held():
            running = [pool.submit(served.predict, f"a {token}") for token in range(10, 10 + rows)]
            while served.metrics("laplora_reserved_rows")[""] < rows:
                time.sleep(0.02)
            scale(served, 1)
            until_room_for(served, scorers=1)
            assert served.metrics("laplora_reserved_rows")[""] == rows
            assert code(served.predict("a")) == (429, "queue_full")
        answers = [one.result() for one in running]
    assert {answer.status_code for answer in answers} == {200}
    assert [first_prob(answer.json()) for answer in answers] == [*range(10, 10 + rows)]
    while len(now := set(replicas(served))) != 1:
        time.sleep(0.1)
    assert now < both
    scale(served, SCORERS)
    until_all_replicas(served, artifacts=1)


@on_ray
def test_sigterm_answers_what_is_under_way_and_ends_clean(served: Engine) -> None:
    """The last one: the engine is gone after it."""
    until_all_replicas(served, artifacts=1)
    with ThreadPoolExecutor(1) as pool:
        with served.held():
            running = pool.submit(served.predict, "a 12")
            while not served.metrics("laplora_reserved_rows")[""]:
                time.sleep(0.02)
            served.process.terminate()
        assert running.result().status_code == 200
    assert served.process.wait(GIVE_UP_S) == ExitStatus.CLEAN, served.log.read_text()
