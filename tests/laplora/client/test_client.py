"""laplora.client against servers that are full, not ready, gone or not ours; their answers are the contract's."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract import answer_to, answered, example, refused
from pydantic import BaseModel

from laplora.client import (
    BadRow,
    ChangeFailedError,
    Client,
    JobFailedError,
    RequestRefusedError,
    Retries,
    ServiceFailedError,
    ServiceUnavailableError,
    ServiceUnreachableError,
)
from laplora.errors import ConfigError, DataError, LaploraWarning

Connect = Callable[..., Client]
Handler = Callable[[httpx.Request], httpx.Response]

TEXTS = [{"text": "a"}]
LABELLED = [{"text": "a", "label": "positive"}] * 2
JOB = answer_to("GET", "/evaluate/jobs/j")


def carried(typed: Any, sent: Any) -> bool:
    """Return whether all that a typed answer holds is what was sent under the same names, None what was not sent."""
    if isinstance(typed, BaseModel):
        typed = typed.model_dump(mode="json")
    if isinstance(typed, dict):
        return all(carried(value, sent.get(name)) for name, value in typed.items())
    if isinstance(typed, list | tuple):
        return len(typed) == len(sent) and all(map(carried, typed, sent))
    return bool(typed == sent)


@pytest.mark.parametrize(
    ("call", "operation", "part"),
    [
        (lambda c: c.predict(TEXTS).predictions, ("POST", "/predict"), "predictions"),
        (lambda c: c.predict(TEXTS).artifacts[0], ("POST", "/predict"), "artifact"),
        (lambda c: c.feedback({"p": "a"}), ("POST", "/feedback"), "results"),
        (lambda c: c.evaluate(LABELLED), ("POST", "/evaluate"), None),
        (lambda c: c.suggest(TEXTS, count=5), ("POST", "/suggest"), None),
        (lambda c: c.submit_job(LABELLED), ("POST", "/evaluate/jobs"), None),
        (lambda c: c.job("j"), ("GET", "/evaluate/jobs/j"), None),
        (lambda c: c.jobs(), ("GET", "/evaluate/jobs"), "jobs"),
        (lambda c: c.cancel_job("j"), ("POST", "/evaluate/jobs/j/cancel"), None),
        (lambda c: c.artifacts(), ("GET", "/artifacts"), "artifacts"),
        (lambda c: c.unload("a"), ("POST", "/artifacts/a/unload"), "artifact"),
        (lambda c: c.begin_shadow("a", activate_if_better=["nll"]), ("POST", "/artifacts/a/shadow"), "shadow"),
        (lambda c: c.shadow(), ("GET", "/shadow"), "shadow"),
        (lambda c: c.end_shadow("a"), ("DELETE", "/artifacts/a/shadow"), "shadow"),
    ],
)
def test_typed_answers_are_the_contract_s(
    connect: Connect, call: Callable[[Client], Any], operation: tuple[str, str], part: str | None
) -> None:
    """Fields of a newer service are ignored."""
    body = answer_to(*operation)
    with connect(lambda request: httpx.Response(200, json=answer_to(*operation) | {"newer": 1})) as client:
        assert carried(call(client), body if part is None else body[part])


@pytest.mark.parametrize(
    ("call", "path", "result", "part"),
    [
        (lambda c, **more: c.load("a", **more), "load", "LoadResponse", "artifact"),
        (lambda c, **more: c.activate("a", **more), "activate", "ActivateResponse", "artifact"),
        (lambda c, **more: c.condition("a", LABELLED, **more), "condition", "ConditionResponse", None),
        (lambda c, **more: c.undo_condition("a", **more), "condition/undo", "UndoResponse", "artifact"),
    ],
)
def test_a_change_is_begun_once_and_polled_to_its_end(
    connect: Connect, call: Callable[..., Any], path: str, result: str, part: str | None
) -> None:
    came_to, error = example(result), {"code": "golden_mismatch", "message": "off"}
    running = answer_to("GET", "/changes/c") | {"status": "running", "result": None}
    ends = {"succeeded": {"result": came_to}, "failed": {"error": error}}
    answers: list[int | dict[str, Any]] = []
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = answers.pop(0)
        if isinstance(answer, int):
            return refused(request, answer) if answer == 503 else httpx.Response(answer, text="<html>")
        return httpx.Response(202 if request.method == "POST" else 200, json=answer)

    with connect(handler) as client:
        for status, end in ends.items():
            # Neither a refusal nor a proxy's page in the middle begins it again.
            answers += [503, running, running, 503, 502, running | {"status": status} | end]
            if status == "failed":
                with pytest.raises(ChangeFailedError, match="off") as failed:
                    call(client)
                assert failed.value.code == "golden_mismatch"
            else:
                assert carried(call(client), came_to if part is None else came_to[part])
            assert [one.method for one in seen] == ["POST", "POST", "GET", "GET", "GET", "GET"]
            assert {one.url.path for one in seen} == {f"/artifacts/a/{path}", f"/changes/{running['id']}"}
            assert len({one.headers["idempotency-key"] for one in seen[:2]}) == 1
            seen.clear()
        answers += [running, running]
        with pytest.raises(ServiceUnavailableError, match=running["id"]) as late:
            call(client, timeout_s=0)
        assert (late.value.code, seen[0].headers["idempotency-key"] == "") == ("timeout", False)


def failing(fault: int | Exception, tried: list[httpx.Request], then_after: int = 99) -> Handler:
    """Return a server that fails, and answers from a try on; it notes every request."""

    def handler(request: httpx.Request) -> httpx.Response:
        tried.append(request)
        if len(tried) > then_after:
            return answered(request)
        if isinstance(fault, Exception):
            raise fault
        if fault == 502:
            return httpx.Response(502, text="<html>")
        return refused(request, fault, **{"retry-after": "0.02"})

    return handler


@pytest.mark.parametrize(
    ("fault", "kind", "tries"),
    [
        (429, ServiceUnavailableError, 3),
        (503, ServiceUnavailableError, 3),
        (httpx.ConnectError("refused"), ServiceUnreachableError, 3),
        (httpx.RemoteProtocolError("broke off"), ServiceUnreachableError, 3),
        (httpx.ReadTimeout("slow"), ServiceUnreachableError, 1),
        (401, RequestRefusedError, 1),
        (422, RequestRefusedError, 1),
        (504, ServiceFailedError, 1),
    ],
)
def test_temporary_faults_are_tried_again_and_final_ones_raised(
    connect: Connect, fault: int | Exception, kind: type[ServiceFailedError], tries: int
) -> None:
    tried: list[httpx.Request] = []
    with connect(failing(fault, tried)) as client, pytest.raises(ServiceFailedError) as raised:
        client.predict(TEXTS)
    assert type(raised.value) is kind
    assert len(tried) == tries
    if isinstance(fault, int):
        error = answer_to("POST", "/predict", fault)
        stated = {"status": fault, "request_id": error["request_id"], "retry_after_s": 0.02, **error["error"]}
        assert {name: getattr(raised.value, name) for name in stated} == stated
        assert str(raised.value) == stated["message"]
    if tries > 1:
        with connect(failing(fault, [], then_after=tries - 1)) as client:
            assert len(client.predict(TEXTS)) == 1


def test_waits_grow_with_jitter_and_are_at_least_what_the_service_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, full = Retries(tries=6, first_s=1, longest_s=4), ServiceUnavailableError("full", status=429)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    assert [rule.wait_s(full, n) for n in range(1, 7)] == [1, 2, 4, 4, 4, None]
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    assert rule.wait_s(full, 1) == 0.5
    assert rule.wait_s(ServiceUnavailableError("full", retry_after_s=9), 1) == 9
    for bad in ({"tries": 0}, {"first_s": 0}, {"first_s": 2, "longest_s": 1}):
        with pytest.raises(ConfigError):
            Retries(**bad)  # type: ignore[arg-type]


def test_what_is_refused_the_second_time_is_sent_again_only_where_nothing_came_of_it(connect: Connect) -> None:
    for fault, tries in (
        (502, 1),  # of a proxy, whose connection broke
        (httpx.RemoteProtocolError("broke off"), 1),
        (httpx.ConnectError("refused"), 3),
        (503, 3),
    ):
        # A change has a key: it is begun once, however often it is sent.
        for call, most in (
            (lambda c: c.unload("a"), tries),
            (lambda c: c.undo_condition("a"), 3),
            (lambda c: c.predict(TEXTS), 3),
        ):
            tried: list[httpx.Request] = []
            with connect(failing(fault, tried)) as client, pytest.raises(ServiceFailedError):
                call(client)
            assert len(tried) == most, fault


NO_ROWS = json.dumps(answer_to("POST", "/predict") | {"predictions": []})
OTHERS = [(200, "<html>"), (200, '{"predictions": []}'), (200, NO_ROWS), (200, "[1]"), (501, "<html>"), (500, "{}")]


@pytest.mark.parametrize(("status", "body"), OTHERS)
def test_another_server_at_that_address(connect: Connect, status: int, body: str) -> None:
    with connect(lambda _request: httpx.Response(status, text=body)) as client:
        for call in (lambda: client.predict(TEXTS), client.artifacts):
            with pytest.raises(ServiceFailedError) as raised:
                call()
            assert (type(raised.value), raised.value.status) == (ServiceFailedError, status)
        assert not client.ready() or status == 200
        if status != 200:
            with pytest.raises(ServiceUnavailableError, match="not ready"):
                client.wait_until_ready(0.01)


def test_a_job_is_watched_across_a_proxy_and_its_rows_without_an_answer_are_warned_of(connect: Connect) -> None:
    done = {**JOB, "status": "done", "error": None, "rows": 2, "rows_done": 2, "rows_bad": 1}
    done["bad_rows"] = [{"line": 2, "code": "unscorable_input"}]
    answers = [
        httpx.Response(502, text="<html>"),
        httpx.Response(504),
        *(httpx.Response(200, json=done) for _ in range(4)),
    ]
    patient = Retries(tries=3, first_s=0.01)
    with connect(lambda _request: answers.pop(0)) as client:
        assert [one.status for one in client.watch_job("j", retries=patient)] == ["done"]
        assert client.job("j").bad_rows == (BadRow(line=2, code="unscorable_input"),)
        with pytest.warns(LaploraWarning, match=f"1 of 2 rows of job {JOB['id']} could not be scored"):
            assert client.wait_for_job("j").rows == JOB["result"]["rows"]
    with connect(lambda _request: httpx.Response(500)) as client, pytest.raises(ServiceFailedError):
        next(iter(client.watch_job("j", retries=patient)))


class Broken(httpx.AsyncByteStream):
    """A body that breaks off."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
        raise httpx.ReadError("it broke off")


def test_a_download_goes_on_behind_the_last_whole_line_and_is_written_as_it_came(
    connect: Connect, tmp_path: Path
) -> None:
    """A line break of JSON Lines is one byte, whatever other breaks a text has in it."""
    lines = [f'{{"line":{n},"input":{{"text":"a\u2028b"}},"answer":null,"error":"x"}}\n'.encode() for n in (1, 2, 3)]

    def handler(request: httpx.Request) -> httpx.Response:
        after = int(request.url.params.get("after", 0))
        if after == 0:
            return httpx.Response(200, stream=Broken(lines[0], lines[1][:20]))
        return httpx.Response(200, content=b"".join(lines[after:]))

    with connect(handler) as client:
        assert client.download_job("j", tmp_path / "rows.jsonl").read_bytes() == b"".join(lines)
        assert [row.line for row in client.job_results("j")] == [1, 2, 3]


@pytest.mark.parametrize("others", ["answered", "wait"])
def test_after_a_refusal_nothing_more_is_sent(connect: Connect, others: str) -> None:
    """Not by the batches that have not begun, nor by those that wait for their next try."""
    sent: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        (row,) = json.loads(request.content)["inputs"]
        sent.append(row["text"])
        time.sleep(0.002)
        if row["text"] == "1":
            return refused(request, 422)
        return answered(request) if others == "answered" else refused(request, 429, **{"retry-after": "60"})

    rows = [{"text": str(i)} for i in range(200)]
    with connect(handler, batch_size=1, in_flight=2) as client, pytest.raises(RequestRefusedError):
        client.predict(rows)
    assert len(sent) < 100


def test_the_key_and_only_stated_options_are_sent(connect: Connect, capsys: pytest.CaptureFixture[str]) -> None:
    """Older services refuse options that they do not know; zero is a statement."""
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer k"
        sent.append(dict(request.url.params) or json.loads(request.content or "{}").get("options"))
        return answered(request)

    with connect(handler, api_key="k") as client:
        client.predict(TEXTS * 3, target_risk=0.0, progress=True)
        with pytest.raises(RuntimeError, match="its own progress"):
            client.predict(TEXTS, progress=lambda _: client.ready())
        client.evaluate(LABELLED, timeout_s=1.5)
        client.submit_job(LABELLED, seed=0, truncate=True, artifact="a")
        client.predict(TEXTS)
    job = {"seed": "0", "truncate": "true", "artifact": "a"}
    assert sent == [{"target_risk": 0.0}, None, {"timeout_s": 1.5}, job, None]
    assert "3/3" in capsys.readouterr().err


def test_inputs_that_cannot_be_sent(connect: Connect, tmp_path: Path) -> None:
    with connect(answered) as client:
        for call in (client.predict, client.evaluate, client.submit_job):
            with pytest.raises(DataError, match="no inputs"):
                call([])
            with pytest.raises(DataError, match="input 1 is str"):
                call([{"text": "a"}, "a text"])  # type: ignore[list-item]
            with pytest.raises(ValueError, match="JSON"):
                call([{"text": float("nan")}])
        with pytest.raises(FileNotFoundError):
            client.submit_job(tmp_path / "none.jsonl")


def test_another_try_sends_the_same_upload_under_the_same_key(connect: Connect) -> None:
    error = {"code": "unscorable_input", "message": "no finite answer", "field": "lines.2"}
    failed = {**JOB, "status": "failed", "result": None, "error": error}
    sent: list[tuple[bytes, str]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=failed)
        sent.append((request.content, request.headers["idempotency-key"]))
        return answered(request) if len(sent) == 3 else refused(request, 503)

    with connect(handler) as client, pytest.raises(JobFailedError, match="no finite answer") as raised:
        client.wait_for_job(client.submit_job(iter(LABELLED)))
    assert (raised.value.code, raised.value.field) == ("unscorable_input", "lines.2")
    assert (len(sent), len(set(sent))) == (3, 1)
    assert list(map(json.loads, sent[0][0].splitlines())) == LABELLED
