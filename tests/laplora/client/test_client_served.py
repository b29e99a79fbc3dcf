"""laplora.client, blocking and asynchronous, against a real server process over a fake predictor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_process import ROOT, fake_artifacts, server_process

from laplora.client import Client, JobFailedError, RequestRefusedError, ServiceUnavailableError

INPUTS = [{"id": f"r{i}", "text": f"row {i + 2}"} for i in range(150)]


def rows(count: int) -> list[dict[str, str]]:
    return [{"text": f"row {i + 2}", "label": ("negative", "positive")[i % 3 == 0]} for i in range(count)]


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate") / "gate"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, gate: Path) -> Iterator[str]:
    """A server that takes 60 inputs a request."""
    gate.touch()
    root = fake_artifacts(tmp_path_factory.mktemp("served"))
    command = [str(ROOT / "tests" / "service" / "fake_server.py"), "--artifact", "fake", "--artifacts-root", str(root)]
    command += ["--max-inputs", "60", "--batch-tokens", "40"]
    with server_process(command, {"FAKE_GATE": str(gate)}) as process, process.client() as client:
        yield str(client.base_url)


@pytest.fixture
def client(connect: Callable[..., Client], address: str) -> Iterator[Client]:
    """A client whose requests of 100 inputs are refused, and sent again in halves."""
    with connect(address, batch_size=100) as client:
        yield client


def test_a_long_list_is_answered_in_order(client: Client) -> None:
    counts: list[int] = []
    client.wait_until_ready()
    answers = client.predict(INPUTS, predictive="ensemble", covariance=True, target_risk=0.2, progress=counts.append)
    assert [a.id for a in answers] == [row["id"] for row in INPUTS]
    # the fake names each row in its answer
    assert [round(a.probs["negative"] * 100_000) for a in answers] == [i + 2 for i in range(len(INPUTS))]
    assert (sum(counts), max(counts)) == (150, 50)
    assert [artifact.name for artifact in answers.artifacts] == ["fake"]
    assert (answers.predictive, answers.target_risk) == ("ensemble", 0.2)
    assert {len(a.logit_covariance or ()) for a in answers} == {2}


def test_labels_of_earlier_predictions(client: Client) -> None:
    answers = client.predict(INPUTS)
    labels = {str(a.prediction_id): a.label for a in answers}
    assert len(labels) == 150
    first = client.feedback(labels)
    again = client.feedback([("lost", "positive"), *labels.items()])
    with pytest.raises(RequestRefusedError, match="none of the 2") as refused:
        client.feedback({str(answers[0].prediction_id): "no such label"})
    assert client.feedback({}) == ()
    assert [r.prediction_id for r in first] == list(labels)
    assert {r.status for r in first} == {"recorded"}
    assert [r.status for r in again] == ["unknown", *["repeated"] * 150]
    assert refused.value.field == "items.0.label"


def test_evaluate_artifacts_and_activate(client: Client) -> None:
    found = client.evaluate(rows(60))
    (listed,) = [artifact for artifact in client.artifacts() if artifact.active]
    active, loaded = client.activate(listed.name), client.load(listed.name)
    with pytest.raises(RequestRefusedError) as needed:
        client.unload(listed.name)
    with pytest.raises(RequestRefusedError) as refused:
        client.evaluate(rows(61))
    with pytest.raises(RequestRefusedError) as unknown:
        client.activate("../other name")
    assert found.rows == 60
    assert 0 <= found.methods["laplace"].ece <= 1
    assert (listed.active, listed.loaded, listed.fields) == (True, True, ("text",))
    assert listed.prediction_sets is not None
    assert listed.prediction_sets.nominal_coverage == 0.9
    assert listed.prediction_sets.measured["laplace"].empirical_coverage == 0.914
    assert active.name == loaded.name == listed.name == "fake"
    assert (needed.value.status, needed.value.code) == (409, "artifact_active")
    assert (refused.value.status, refused.value.limit, refused.value.got) == (413, 60, 61)
    assert unknown.value.status == 404


def test_refusals_name_what_is_wrong(client: Client) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        client.predict([{"text": "a"}, {"txet": "a"}])
    assert (refused.value.status, str(refused.value.field)[:8]) == (422, "inputs.1")
    assert refused.value.request_id
    with pytest.raises(RequestRefusedError) as refused:
        client.predict([{"text": "a"}], artifact="no-such")
    assert refused.value.status == 404
    with pytest.raises(RequestRefusedError) as refused:
        client.submit_job([*rows(2), {"text": "a", "label": "good"}])
    assert refused.value.field == "lines.3.label"


def test_an_iterable_and_a_file_are_evaluated_with_a_bar(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = rows(60)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, items)))
    direct = client.evaluate(items)
    first = client.submit_job(iter(items))
    assert (first.rows, first.result) == (60, None)
    done: list[int] = []
    assert client.wait_for_job(first, progress=done.append).methods == direct.methods
    assert sum(done) == 60
    second, again = (client.submit_job(path, bins=3, resamples=10, seed=1, idempotency_key=first.id) for _ in range(2))
    assert second.id == again.id != first.id
    found = client.wait_for_job(second.id, progress=True)
    assert "60/60" in capsys.readouterr().err
    assert len(found.methods["map"].reliability) == 3
    assert {job.id for job in client.jobs()} >= {first.id, second.id}
    state = client.cancel_job(second)  # it has ended, and stays as it is
    assert (state.status, state.finished) == ("done", True)
    assert client.job(second).result == found
    assert (state.partial or {})["map"]["accuracy"] == pytest.approx(direct.methods["map"].accuracy)
    client.remove_job(second)
    assert second.id not in {job.id for job in client.jobs()}


def test_cancelled_and_late_jobs(client: Client, gate: Path) -> None:
    gate.unlink()
    try:
        job = client.submit_job(rows(9))
        with pytest.raises(ServiceUnavailableError, match="had not ended") as late:
            client.wait_for_job(job, timeout_s=0.01)
        with pytest.raises(RequestRefusedError, match="cancel it first") as running:
            client.remove_job(job)
        assert not client.job(job).finished
        assert client.cancel_job(job).status == "cancelled"
    finally:
        gate.touch()
    with pytest.raises(JobFailedError) as cancelled:
        client.wait_for_job(job)
    assert [e.value.code for e in (late, running, cancelled)] == ["timeout", "job_not_ended", "cancelled"]
    client.remove_job(job)
    for lost in (client.job, client.remove_job, client.cancel_job):
        with pytest.raises(RequestRefusedError, match="no job"):
            lost(job)
