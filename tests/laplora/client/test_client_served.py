"""laplora.client against a real server process over a fake predictor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_runs import write_rows

from laplora.client import Client, JobFailedError, RequestRefusedError, ServiceUnavailableError

INPUTS = [{"id": f"r{i}", "text": f"row {i + 2}"} for i in range(150)]


def rows(count: int) -> list[dict[str, str]]:
    return [{"text": f"row {i + 2}", "label": ("negative", "positive")[i % 3 == 0]} for i in range(count)]


@pytest.fixture
def client(connect: Callable[..., Client], served: str) -> Iterator[Client]:
    """A client whose requests of 100 inputs are refused, and sent again in halves."""
    with connect(served, batch_size=100) as client:
        yield client


def test_a_long_list_is_answered_in_order(client: Client) -> None:
    counts: list[int] = []
    client.wait_until_ready()
    asked = {
        "predictive": "laplace",
        "covariance": True,
        "target_risk": 0.2,
        "detail": "full",
        "progress": counts.append,
    }
    answers = client.predict(INPUTS, **asked)
    assert [a.id for a in answers] == [row["id"] for row in INPUTS]
    # the fake names each row in its answer
    assert [round(a.probs["negative"] * 100_000) for a in answers] == [i + 2 for i in range(len(INPUTS))]
    assert (sum(counts), max(counts)) == (150, 50)
    assert [artifact.name for artifact in answers.artifacts] == ["fake"]
    assert (answers.predictive, answers.target_risk) == ("laplace", 0.2)
    assert {len(a.logit_covariance or ()) for a in answers} == {2}
    assert answers.nothing_accepted is None
    short = client.predict(INPUTS[:1], predictive="map", target_risk=0.1, variance=True, fields=["probs"])
    assert (short[0].spread_of, short[0].tokens, short[0].map_probs) == ("laplace", None, None)
    assert (short[0].probs_std or {}).keys() == (short[0].probs or {}).keys()
    strict = short.nothing_accepted
    assert (strict and (strict.message, strict.accepts_from)) == ("map accepts nothing", 0.125)


def test_labels_of_earlier_predictions(client: Client) -> None:
    answers = client.predict(INPUTS)
    labels = {str(a.prediction_id): a.label for a in answers}
    assert len(labels) == 150
    assert [(r.prediction_id, r.status) for r in client.feedback(labels)] == [(name, "recorded") for name in labels]
    again = client.feedback([("lost", "positive"), *labels.items()])
    assert [r.status for r in again] == ["unknown", *["repeated"] * 150]
    assert client.feedback({}) == ()
    with pytest.raises(RequestRefusedError, match="none of the 2") as refused:
        client.feedback({str(answers[0].prediction_id): "no such label"})
    assert refused.value.field == "items.0.label"


def test_evaluate_artifacts_and_refusals(client: Client) -> None:
    found = client.evaluate(rows(60))
    assert found.rows == 60
    assert 0 <= found.methods["laplace"].ece <= 1
    (listed,) = [artifact for artifact in client.artifacts() if artifact.active]
    assert (listed.active, listed.loaded, listed.fields) == (True, True, ("text",))
    assert client.activate(listed.name).name == client.load(listed.name).name == listed.name == "fake"
    labelled = [*rows(2), {"text": "a", "label": "good"}]
    for call, status, said in (
        (lambda: client.unload(listed.name), 409, {"code": "artifact_active"}),
        (lambda: client.evaluate(rows(61)), 413, {"limit": 60, "got": 61}),
        (lambda: client.activate("../other name"), 404, {}),
        (lambda: client.predict([{"text": "a"}, {"txet": "a"}]), 422, {"code": "invalid_input"}),
        (lambda: client.predict([{"text": "a"}], artifact="no-such"), 404, {}),
        (lambda: client.submit_job(labelled), 422, {"field": "lines.3.label"}),
    ):
        with pytest.raises(RequestRefusedError) as refused:
            call()
        assert refused.value.request_id
        assert (refused.value.status, said) == (status, {name: getattr(refused.value, name) for name in said})


def test_jobs_of_an_iterable_and_a_file(client: Client, gate: Path, tmp_path: Path) -> None:
    direct, done = client.evaluate(rows(60)), list[int]()
    first = client.submit_job(iter(rows(60)))
    assert (first.rows, first.result) == (60, None)
    assert client.wait_for_job(first, progress=done.append).methods == direct.methods
    assert sum(done) == 60
    assert client.download_job(first, tmp_path / "answers.jsonl").read_bytes().count(b"\n") == 60
    path = write_rows(tmp_path / "rows.jsonl", rows(60))
    gate.unlink()
    try:
        second, again = (client.submit_job(path, bins=3, resamples=10, idempotency_key=first.id) for _ in range(2))
        assert second.id == again.id != first.id
        with pytest.raises(ServiceUnavailableError, match="had not ended") as late:
            client.wait_for_job(second, timeout_s=0.01)
        running = client.submit_job(path)
        client.remove_job(running)
        third = client.submit_job(path)
        assert client.cancel_job(third).status == "cancelled"
    finally:
        gate.touch()
    with pytest.raises(JobFailedError) as cancelled:
        client.wait_for_job(third)
    assert [e.value.code for e in (late, cancelled)] == ["timeout", "cancelled"]
    found, state = client.wait_for_job(second.id), client.job(second)
    assert len(found.methods["map"].reliability) == 3
    assert (state.result, client.cancel_job(second).status) == (found, "done")  # it has ended, and stays as it is
    assert (state.partial or {})["map"]["accuracy"] == pytest.approx(direct.methods["map"].accuracy)
    bare = client.submit_job([{"text": "row 5"}, {"text": "row 6", "label": "positive"}], resamples=10)
    assert (client.wait_for_job(bare).rows, bare.rows, bare.rows_labelled) == (1, 2, 1)
    counts = client.job(bare).answered
    assert counts is not None
    assert (counts.rows, sum(counts.decisions.values()), sum(counts.set_sizes.values())) == (2, 2, 2)
    client.remove_job(second)
    assert second.id not in {job.id for job in client.jobs()} >= {first.id}
    for lost in (client.job, client.remove_job, client.cancel_job):
        for job in (running, second):
            with pytest.raises(RequestRefusedError, match="no job"):
                lost(job)
