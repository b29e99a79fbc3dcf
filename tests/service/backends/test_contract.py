"""What every engine promises: one suite, against a plain server and against scorers on a local Ray cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from engines import Engine, cluster_environment, engine, first_prob, replicas, short_folder, until_all_replicas
from job_servers import has, job_until, submit_to
from server_process import until
from serving import code

from service.exit_status import ExitStatus

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", params=["plain", "ray"])
def served(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with short_folder() as folder, engine(request.param, folder) as one:
        yield one


def test_each_request_has_its_own_answer_of_its_own_artifact_and_feedback_finds_it(served: Engine) -> None:
    where = served.client.post("/artifacts/second/load").headers["location"]
    until(lambda: served.client.get(where).json()["status"] == "succeeded")
    if served.name == "ray":
        until_all_replicas(served, artifacts=2)
        assert set(served.metrics("laplora_replica_queue_tokens")) == set(replicas(served))
    wanted = [(token, ("fake", "second")[token % 2]) for token in range(100, 160)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda one: served.predict(f"a {one[0]}", artifact=one[1]), wanted))
    assert {answer.status_code for answer in answers} == {200}
    assert [(first_prob(a.json()), a.json()["artifact"]["name"]) for a in answers] == wanted
    assert {answer.json()["artifact"]["digest"] for answer in answers} == {"sha256:fake", "sha256:second"}
    ids = [answer.json()["predictions"][0]["prediction_id"] for answer in answers[:10]]
    items = [{"prediction_id": one, "label": "positive"} for one in ids]
    recorded = served.client.post("/feedback", json={"items": items}).json()["results"]
    assert [one["status"] for one in recorded] == ["recorded"] * 10
    assert served.client.post("/artifacts/second/unload").status_code == 200
    assert code(served.predict("a", artifact="second")) == (404, "artifact_not_loaded")
    assert code(served.predict("a", artifact="third")) == (404, "artifact_not_found")
    listed = {one["name"]: one["loaded"] for one in served.client.get("/artifacts").json()["artifacts"]}
    assert listed == {"fake": True, "second": False}


def test_a_job_scores_every_row_once(served: Engine) -> None:
    rows = [{"text": f"a {token}", "label": "positive"} for token in range(200)]
    job = job_until(served.client, submit_to(served.client, rows), has("done"), pause_s=0.05)
    assert job["rows_done"] == 200
    results = served.client.get(f"/evaluate/jobs/{job['id']}/results").text.splitlines()
    assert [json.loads(line)["input"]["text"] for line in results] == [row["text"] for row in rows]


def test_a_lost_device_ends_the_plain_server_with_its_status(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As ``service.asgi`` has it, under a server that knows nothing of laplora."""
    with engine("plain", tmp_path_factory.mktemp("lost")) as lost:
        assert code(lost.predict("a 99556")) == (503, "device_fault")
        assert lost.process.wait(60) == ExitStatus.DEVICE_FAULT


@pytest.mark.parametrize("served", ["ray"], indirect=True)
def test_a_header_of_rays_changes_nothing_and_another_address_than_the_clusters_is_refused(served: Engine) -> None:
    """The address would have no effect, and whoever thinks that this machine alone is answered would be wrong."""
    for name in ("serve_multiplexed_model_id", "serve-multiplexed-model-id"):
        for value in ("unknown", "a" * 1000):
            answer = served.client.post("/predict", json={"inputs": [{"text": "a 123"}]}, headers={name: value})
            assert (answer.status_code, first_prob(answer.json())) == (200, 123)
    flags = ["--artifact", "fake", "--auth", "off", "--host", "127.0.0.2", "--port", str(served.client.base_url.port)]
    command = [sys.executable, "-m", "service.ray_serve", *flags]
    refused = subprocess.run(command, env=cluster_environment(served), capture_output=True, text=True)
    assert refused.returncode == ExitStatus.USAGE, refused.stderr
    assert "listens on 127.0.0.1 port" in refused.stderr
    assert served.predict("a 12").status_code == 200
