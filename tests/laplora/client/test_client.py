"""laplora.client against a real server process, and against servers that are full, not ready, gone, or not ours."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import Process, server_process
from tiny_runs import BAD, GOOD, NOUNS, FinishedRun

from laplora.client import (
    Answers,
    AsyncClient,
    Client,
    RequestRefusedError,
    Retries,
    ServiceFailedError,
    ServiceUnavailableError,
    ServiceUnreachableError,
    retries,
)
from laplora.errors import ConfigError, DataError
from service.keys import Key, digest, new_token, write_keys

TEXTS = [{"id": f"{n}-{w}", "text": f"The {n} was {w}."} for n in NOUNS for w in (*GOOD, *BAD)]
QUICK = Retries(tries=3, first_s=0.01, longest_s=0.02)


@pytest.fixture(scope="module")
def process(sentiment_run: FinishedRun) -> Iterator[Process]:
    artifact = sentiment_run.artifact
    arguments = ["-m", "service", "--artifact", str(artifact), "--artifacts-root", str(artifact.parent)]
    arguments += ["--device", "cpu", "--max-inputs", "20"]
    with server_process(arguments) as process:
        yield process


@pytest.fixture(scope="module")
def address(process: Process) -> str:
    with process.client() as client:
        return str(client.base_url)


def test_a_long_list_is_answered_in_order(address: str) -> None:
    """96 inputs, 40 at a time, of which the server takes 20: halves of what is refused are sent."""
    seen: list[int] = []
    with Client(address, batch_size=40) as client:
        answers = client.predict(TEXTS, progress=seen.append)
        (one,) = client.predict(TEXTS[:1])
    assert [a.id for a in answers] == [t["id"] for t in TEXTS]
    assert sum(seen) == len(TEXTS)
    assert max(seen) == 20
    assert len(answers.artifacts) == 1
    assert (answers.predictive, answers.target_risk) == ("laplace", 0.05)
    assert answers[0].probs == pytest.approx(one.probs, abs=1e-5)
    assert sum(answers[0].probs.values()) == pytest.approx(1)
    assert answers[0].uncertainty is not None
    assert {a.answered_by for a in answers} == {"laplace"}


def test_labels_of_earlier_predictions(address: str) -> None:
    """More at a time than the server takes: halves of what is refused are sent, in order."""
    with Client(address, batch_size=40) as client:
        answers = client.predict(TEXTS[:50])
        labels = {str(a.prediction_id): a.label for a in answers}
        first = client.feedback(labels)
        again = client.feedback([("lost", "positive"), *labels.items()])
        with pytest.raises(RequestRefusedError, match="none of the 2") as refused:
            client.feedback({str(answers[0].prediction_id): "no such label"})
        assert client.feedback({}) == ()
    assert [r.prediction_id for r in first] == list(labels)
    assert len(labels) == 50
    assert {r.status for r in first} == {"recorded"}
    assert [r.status for r in again] == ["unknown", *["repeated"] * 50]
    assert refused.value.field == "items.0.label"


def test_labels_of_earlier_predictions_to_await(address: str) -> None:
    async def ask() -> list[str]:
        async with AsyncClient(address, batch_size=40) as client:
            answers = await client.predict(TEXTS[:30])
            return [r.status for r in await client.feedback((str(a.prediction_id), a.label) for a in answers)]

    assert asyncio.run(ask()) == ["recorded"] * 30


def test_it_is_what_the_server_sends(address: str) -> None:
    """Every field of the contract, against the plain response."""
    options = {"mode": "fast", "covariance": True, "target_risk": 0.2}
    plain = httpx.post(f"{address}/predict", json={"inputs": TEXTS[:6], "options": options}).json()
    with Client(address) as client:
        answers = client.predict(TEXTS[:6], mode="fast", covariance=True, target_risk=0.2)
    for got, want in zip(answers, plain["predictions"], strict=True):
        sent = json.loads(got.model_dump_json(exclude_none=True))
        wanted = json.loads(json.dumps(want))
        assert set(sent) == {k for k, v in wanted.items() if v is not None}
        assert sent["label"] == wanted["label"]
        for row, wanted_row in zip(sent["logit_covariance"], wanted["logit_covariance"], strict=True):
            assert row == pytest.approx(wanted_row, rel=1e-3)


def test_async_gives_the_same(address: str) -> None:
    async def ask() -> tuple[Answers, int, bool]:
        async with AsyncClient(address, batch_size=16, in_flight=3) as client:
            await client.wait_until_ready()
            answers, listed = await asyncio.gather(client.predict(TEXTS), client.artifacts())
            return answers, len(listed), await client.ready()

    answers, listed, ready = asyncio.run(ask())
    with Client(address) as client:
        wanted = client.predict(TEXTS)
    assert (listed, ready) == (1, True)
    for got, want in zip(answers, wanted, strict=True):
        assert (got.id, got.label, got.decision) == (want.id, want.label, want.decision)
        assert got.probs == pytest.approx(want.probs, abs=1e-5)


def test_evaluate_artifacts_and_activate(address: str, sentiment_run: FinishedRun) -> None:
    labelled = [
        {"text": t["text"], "label": "positive" if t["id"].split("-")[1] in GOOD else "negative"} for t in TEXTS
    ]
    with Client(address) as client:
        found = client.evaluate(labelled[:20])
        (listed,) = client.artifacts()
        active, loaded = client.activate(listed.name), client.load(listed.name)
        with pytest.raises(RequestRefusedError) as needed:
            client.unload(listed.name)
        with pytest.raises(RequestRefusedError) as refused:
            client.evaluate(labelled)
        with pytest.raises(RequestRefusedError) as unknown:
            client.activate("../other name")
    assert found.rows == 20
    assert 0 <= found.methods["laplace"].ece <= 1
    assert (listed.active, listed.fields) == (True, ("text",))
    assert (listed.loaded, (listed.memory_bytes or 0) > 0) == (True, True)
    assert active == loaded
    assert active.name == listed.name == sentiment_run.artifact.name
    assert (needed.value.status, needed.value.code) == (409, "artifact_active")
    assert (refused.value.status, refused.value.limit, refused.value.got) == (413, 20, 96)
    assert unknown.value.status == 404


@pytest.mark.parametrize(
    ("inputs", "options", "status", "field"),
    [
        ([{"text": "a"}, {"txet": "a"}], {}, 422, "inputs.1"),
        ([{"text": "a"}], {"predictive": "swag"}, 422, "options.predictive"),
        ([{"text": "a"}], {"artifact": "no-such"}, 404, None),
        ([{"text": "a", "id": "x"}, {"text": "b", "id": "x"}], {}, 422, "inputs.1.id"),
    ],
)
def test_what_the_service_refuses(
    address: str, inputs: list[Any], options: dict[str, Any], status: int, field: str | None
) -> None:
    async def ask() -> None:
        async with AsyncClient(address) as client:
            await client.predict(inputs, **options)

    with Client(address) as client, pytest.raises(RequestRefusedError) as refused:
        client.predict(inputs, **options)
    with pytest.raises(RequestRefusedError) as again:
        asyncio.run(ask())
    for error in (refused.value, again.value):
        assert error.status == status
        assert (error.field or "").startswith(field or "")
        assert error.request_id
        assert error.code


def test_inputs_that_cannot_be_sent(address: str) -> None:
    with Client(address) as client:
        with pytest.raises(DataError, match="no inputs"):
            client.predict([])
        with pytest.raises(DataError, match="input 1 is str"):
            client.predict([{"text": "a"}, "a text"])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="JSON"):
            client.predict([{"text": float("nan")}])


# Servers that do not answer: a transport that says what they would.

PREDICTION = {
    "label": "a",
    "label_text": "a",
    "map_probs": {"a": 1.0, "b": 0.0},
    "probs": {"a": 1.0, "b": 0.0},
    "probs_std": None,
    "logit_mean": [1.0, -1.0],
    "logit_variance": None,
    "uncertainty": None,
    "label_mass": 1.0,
    "score": 0.0,
    "prediction_set": ["a"],
    "flags": [],
    "decision": "accept",
    "tokens": 3,
    "truncated": False,
    "of_a_newer_service": 1,
}
ARTIFACT = {"name": "n", "digest": "sha256:1", "base_model": "b", "quantization": "nf4"}


def answered(request: httpx.Request) -> httpx.Response:
    count = len(json.loads(request.content)["inputs"])
    return httpx.Response(200, json={"artifact": ARTIFACT, "predictions": [PREDICTION] * count})


def refused(status: int, **headers: str) -> httpx.Response:
    body = {"error": {"code": "queue_full", "message": "no room"}, "request_id": "r1"}
    return httpx.Response(status, json=body, headers=headers)


def both(handler: Callable[[httpx.Request], httpx.Response], inputs: list[dict[str, str]], **options: Any) -> list[Any]:
    """Return what each client gives or raises."""
    found: list[Any] = []
    settings = {"retries": QUICK} | options
    try:
        with Client("http://server", transport=httpx.MockTransport(handler), **settings) as client:
            found.append(client.predict(inputs))
    except ServiceFailedError as error:
        found.append(error)

    async def later(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.001)  # as the network: others get their turn
        return handler(request)

    async def ask() -> Answers:
        async with AsyncClient("http://server", transport=httpx.MockTransport(later), **settings) as client:
            return await client.predict(inputs)

    try:
        found.append(asyncio.run(ask()))
    except ServiceFailedError as error:
        found.append(error)
    return found


@pytest.mark.parametrize("fault", [429, 503, httpx.ConnectError("refused"), httpx.RemoteProtocolError("broke off")])
def test_what_passes_is_tried_again(fault: int | Exception) -> None:
    tried: list[int] = []

    def handler(request: httpx.Request) -> httpx.Response:
        tried.append(1)
        if len(tried) % 3:
            if isinstance(fault, Exception):
                raise fault
            return refused(fault)
        return answered(request)

    for found in both(handler, [{"text": "a"}]):
        assert len(found) == 1
    assert len(tried) == 6


@pytest.mark.parametrize(
    ("fault", "kind", "tries"),
    [
        (429, ServiceUnavailableError, 3),
        (503, ServiceUnavailableError, 3),
        (httpx.ConnectError("refused"), ServiceUnreachableError, 3),
        (httpx.ReadTimeout("slow"), ServiceUnreachableError, 1),
        (422, RequestRefusedError, 1),
        (500, ServiceFailedError, 1),
        (504, ServiceFailedError, 1),
    ],
)
def test_what_does_not_is_raised(fault: int | Exception, kind: type[ServiceFailedError], tries: int) -> None:
    tried: list[int] = []

    def handler(_request: httpx.Request) -> httpx.Response:
        tried.append(1)
        if isinstance(fault, Exception):
            raise fault
        return refused(fault)

    for found in both(handler, [{"text": "a"}]):
        assert type(found) is kind
    assert len(tried) == 2 * tries


def test_waits_grow_with_jitter_and_heed_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, full = Retries(tries=6, first_s=1, longest_s=4), ServiceUnavailableError("full", status=429)
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: high)
    assert [rule.wait_s(full, n) for n in range(1, 7)] == [1, 2, 4, 4, 4, None]
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: low)
    assert rule.wait_s(full, 1) == 0.5
    assert rule.wait_s(ServiceUnavailableError("full", retry_after_s=9), 1) == 9
    for bad in ({"tries": 0}, {"first_s": 0}, {"first_s": 2, "longest_s": 1}):
        with pytest.raises(ConfigError):
            Retries(**bad)  # type: ignore[arg-type]


def test_retry_after_is_read_from_the_header() -> None:
    waited: list[float] = []

    def handler(request: httpx.Request) -> httpx.Response:
        waited.append(time.monotonic())
        return answered(request) if len(waited) == 2 else refused(429, **{"retry-after": "0.3"})

    with Client("http://server", transport=httpx.MockTransport(handler), retries=QUICK) as client:
        client.predict([{"text": "a"}])
    assert waited[1] - waited[0] >= 0.3


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "<html>"),
        (200, json.dumps({"predictions": []})),
        (200, json.dumps({"artifact": ARTIFACT, "predictions": []})),
        (200, "[1]"),
        (502, "<html>"),
        (500, json.dumps({"error": "text"})),
    ],
)
def test_another_server_at_that_address(status: int, body: str) -> None:
    for found in both(lambda _request: httpx.Response(status, text=body), [{"text": "a"}]):
        assert type(found) is ServiceFailedError
        assert found.status == status


def test_after_a_refusal_nothing_more_is_sent() -> None:
    sent: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        (row,) = json.loads(request.content)["inputs"]
        sent.append(row["text"])
        time.sleep(0.002)
        return refused(422) if row["text"] == "0" else answered(request)

    for found in both(handler, [{"text": str(i)} for i in range(200)], batch_size=1, in_flight=2):
        assert isinstance(found, RequestRefusedError)
    assert len(sent) < 100


def test_a_key_is_sent_and_a_bar_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    keys: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["authorization"])
        return answered(request)

    with Client("http://server", api_key="k", transport=httpx.MockTransport(handler)) as client:
        client.predict([{"text": "a"}] * 3, progress=True)
    assert keys == ["Bearer k"]
    assert "3/3" in capsys.readouterr().err


def test_not_ready_in_time() -> None:
    with Client("http://server", transport=httpx.MockTransport(lambda _r: refused(503))) as client:
        assert not client.ready()
        with pytest.raises(ServiceUnavailableError, match="not ready"):
            client.wait_until_ready(0.3)


def test_no_torch_is_loaded() -> None:
    code = "import sys, laplora.client; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_time_a_request_may_take_goes_with_it_only_if_given() -> None:
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content).get("options"))
        return httpx.Response(504, json={"error": {"code": "deadline_exceeded", "message": "late"}, "request_id": "r"})

    for timeout_s in (None, 1.5):
        with Client("http://test", transport=httpx.MockTransport(handler)) as client:
            for ask in (client.predict, client.evaluate):
                with pytest.raises(ServiceFailedError) as caught:
                    ask([{"text": "a"}], timeout_s=timeout_s)
                assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
    assert sent == [None, None, {"timeout_s": 1.5}, {"timeout_s": 1.5}]


def test_a_key_opens_its_scopes_and_refusals_say_why(sentiment_run: FinishedRun, tmp_path: Path) -> None:
    """Against a server with keys: the right one, none, a wrong one, and one without the scope; none is tried again."""
    keys, token = tmp_path / "keys.json", new_token()
    write_keys(keys, [Key(id="a", sha256=digest(token), scopes=("predict",))])
    arguments = ["-m", "service", "--artifact", str(sentiment_run.artifact), "--device", "cpu"]
    labelled = [{"text": TEXTS[0]["text"], "label": "positive"}]
    with server_process([*arguments, "--auth", "keys", "--keys", str(keys)]) as process, process.client() as plain:
        url = str(plain.base_url)
        with Client(url, api_key=token) as client:
            assert len(client.predict(TEXTS[:2])) == 2
            assert client.artifacts()
            for ask in (lambda: client.evaluate(labelled), lambda: client.activate("any")):
                with pytest.raises(RequestRefusedError) as forbidden:
                    ask()
                assert (forbidden.value.status, forbidden.value.code) == (403, "forbidden")
        for wrong in (None, new_token()):
            with Client(url, api_key=wrong) as client:
                client.wait_until_ready()
                with pytest.raises(RequestRefusedError) as unknown:
                    client.predict(TEXTS[:1])
                assert (unknown.value.status, unknown.value.code) == (401, "unauthorized")
                assert wrong is None or wrong not in str(unknown.value)

        async def awaited() -> int:
            async with AsyncClient(url, api_key=token) as client:
                with pytest.raises(RequestRefusedError) as forbidden:
                    await client.evaluate(labelled)
                assert forbidden.value.code == "forbidden"
                return len(await client.predict(TEXTS[:3]))

        assert asyncio.run(awaited()) == 3
        process.popen.terminate()
        process.left()
    asked = [json.loads(line) for line in process.lines if '"event": "request"' in line and '"POST"' in line]
    assert [line["status"] for line in asked] == [200, 403, 403, 401, 401, 403, 200], "no refusal was tried again"
