"""What every engine promises: one suite, against a plain server and against scorers on a local Ray cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from engines import (
    Engine,
    cluster_environment,
    engine,
    first_prob,
    replicas,
    served_rows,
    short_folder,
    until_all_replicas,
)
from job_servers import has, job_until, submit_to
from server_process import until
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


def test_feedback_finds_every_prediction(served: Engine) -> None:
    ids = [served.predict(f"a {token}").json()["predictions"][0]["prediction_id"] for token in range(10)]
    items = [{"prediction_id": one, "label": "positive"} for one in ids]
    answer = served.client.post("/feedback", json={"items": items})
    assert answer.status_code == 200
    assert [one["status"] for one in answer.json()["results"]] == ["recorded"] * 10


def test_a_job_scores_every_row_once(served: Engine) -> None:
    rows = [{"text": f"a {token}", "label": "positive"} for token in range(200)]
    job = job_until(served.client, submit_to(served.client, rows), has("done"), pause_s=0.05)
    assert job["rows_done"] == 200
    results = served.client.get(f"/evaluate/jobs/{job['id']}/results").text.splitlines()
    assert [json.loads(line)["input"]["text"] for line in results] == [row["text"] for row in rows]


def test_what_does_not_fit_is_refused_with_a_time_to_come_back_and_the_rest_is_answered(served: Engine) -> None:
    requests = 2 * served_rows(served)
    with ThreadPoolExecutor(requests) as pool:
        with served.held():
            running = [pool.submit(served.predict, f"a {token}") for token in range(requests)]
            until(lambda: any(one.done() for one in running))
            refused = next(one.result() for one in running if one.done())
            assert code(refused) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
        answers = [one.result() for one in running]
    assert {answer.status_code for answer in answers} == {200, 429}
    for token, answer in enumerate(answers):
        assert answer.status_code == 429 or first_prob(answer.json()) == (token if token > 1 else 0)
    assert served.predict("a 7").status_code == 200


def test_a_deadline_ends_the_wait_and_frees_the_room(served: Engine) -> None:
    with served.held():
        assert code(served.predict("a", timeout_s=0.5)) == (504, "deadline_exceeded")
    until(lambda: not served.metrics("laplora_reserved_rows")[""])


def test_a_lost_device_ends_the_plain_server_with_its_status(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As ``service.asgi`` has it, under a server that knows nothing of laplora."""
    with engine("plain", tmp_path_factory.mktemp("lost")) as lost:
        assert code(lost.predict("a 99556")) == (503, "device_fault")
        assert lost.process.wait(60) == ExitStatus.DEVICE_FAULT


# What only several replicas promise.
on_ray = pytest.mark.parametrize("served", ["ray"], indirect=True)


@on_ray
def test_what_is_loaded_is_loaded_at_every_replica(served: Engine) -> None:
    assert served.client.post("/artifacts/second/load").status_code == 200
    until_all_replicas(served, artifacts=2)
    assert set(served.metrics("laplora_replica_queue_tokens")) == set(replicas(served))


@on_ray
def test_another_address_than_the_clusters_is_refused(served: Engine) -> None:
    """It would have no effect, and whoever thinks that this machine alone is answered would be wrong."""
    flags = ["--artifact", "fake", "--auth", "off", "--host", "127.0.0.2", "--port", str(served.client.base_url.port)]
    command = [sys.executable, "-m", "service.ray_serve", *flags]
    refused = subprocess.run(command, env=cluster_environment(served), capture_output=True, text=True)
    assert refused.returncode == ExitStatus.USAGE, refused.stderr
    assert "listens on 127.0.0.1 port" in refused.stderr
    assert served.predict("a 12").status_code == 200
