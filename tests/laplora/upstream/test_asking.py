"""Asking a decision model over real HTTP: its answers, and every way in which it can fail."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from decision_server import DecisionServer, decision_server, send
from programs import needs

from laplora.errors import (
    ConfigError,
    UpstreamAnswerError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamUnavailableError,
)
from laplora.prompts.questions import question_of_body
from laplora.upstream.asking import Asking, Upstream, UpstreamAnswer, as_state, asked_state

TEAM = question_of_body({"type": "choice", "instructions": "Whose?", "criteria": {"ads": None, "bills": "Payments"}})
SPAM = question_of_body({"type": "noul", "instructions": "Spam?", "criteria": {"true": "advertising"}})
MOOD = question_of_body({"type": "score", "instructions": "How cross?", "criteria": ["calm", "cross", "furious"]})
KEY = "sk-secret-4711"
Found = TypeVar("Found")


def asking(server: DecisionServer, work: Callable[[Asking], Awaitable[Found]], **options: Any) -> Found:
    async def run() -> Found:
        connected = Asking(Upstream(server.url, **options))
        try:
            return await work(connected)
        finally:
            await connected.close()

    return asyncio.run(run())


def one(model: DecisionServer, state: Any = "aab", **options: Any) -> UpstreamAnswer:
    return asking(model, lambda asked: asked.ask(state, {"q": TEAM}), **options)["q"]


def test_answers_of_every_type_by_label(model: DecisionServer) -> None:
    questions = {"team": TEAM, "spam": SPAM, "mood": MOOD}
    found = asking(model, lambda asked: asked.ask("aab t 12", questions), key=KEY, model="named")
    assert {answer.model for answer in found.values()} == {"letters-1"}
    assert found["team"].probs == {"ads": 0.6, "bills": 0.4}
    assert found["spam"].probs == {"false": pytest.approx(1 / 3, abs=1e-4), "true": pytest.approx(2 / 3, abs=1e-4)}
    assert found["mood"].probs == {"0": 0.2, "1": 0.4, "2": 0.4}
    (body,) = model.bodies
    assert body["model"] == "named"
    assert body["state"] == "aab t 12"
    assert model.keys == [f"Bearer {KEY}"]
    # A side of a noul that nobody described is left out: a server may read null as a text of its own.
    assert body["questions"]["spam"]["criteria"] == {"true": "advertising"}
    assert list(body["questions"]["team"]["criteria"]) == ["ads", "bills"]


def test_a_busy_model_is_asked_again(model: DecisionServer) -> None:
    left = [429, 503, 529]
    model.trick = lambda handler, body: bool(left) and send(handler, left.pop(0), {}, retry_after="0")
    assert one(model).probs["ads"] == 0.6
    assert len(model.bodies) == 4
    packed = [b"an error page, packed"]
    model.trick = lambda handler, body: bool(packed) and send(handler, 503, packed.pop(), content_encoding="gzip")
    assert one(model).probs["ads"] == 0.6
    model.bodies = []
    model.trick = lambda handler, body: send(handler, 429, {}, retry_after="3600")
    with pytest.raises(UpstreamUnavailableError, match="asks to wait 3600 s"):
        one(model)
    assert len(model.bodies) == 1


def test_tries_end_and_say_neither_url_nor_key(model: DecisionServer) -> None:
    model.trick = lambda handler, body: send(handler, 503, KEY.encode(), retry_after="0")
    with pytest.raises(UpstreamUnavailableError, match=r"busy or failed .status 503.") as raised:
        one(model, key=KEY, tries=2)
    assert len(model.bodies) == 2
    assert KEY not in str(raised.value)
    assert model.url.rpartition(":")[2] not in str(raised.value)
    assert KEY not in repr(Upstream(model.url, key=KEY))


def test_no_try_begins_beyond_the_deadline(model: DecisionServer) -> None:
    model.trick = lambda handler, body: send(handler, 503, {}, retry_after="60")
    ends = time.monotonic() + 30
    with pytest.raises(UpstreamUnavailableError):
        asking(model, lambda asked: asked.ask("a", {"q": TEAM}, deadline=ends))
    assert len(model.bodies) == 1  # the wait that it asks for is longer than what is left
    with pytest.raises(UpstreamUnavailableError, match="no time left"):
        asking(model, lambda asked: asked.ask("a", {"q": TEAM}, deadline=time.monotonic() - 1))
    assert len(model.bodies) == 1


def test_one_that_is_slow_or_trickles(model: DecisionServer) -> None:
    def trickle(handler: Any, body: Any) -> bool:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        for _ in range(50):  # each byte comes in time, the answer does not
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
        return True

    model.trick = trickle
    with pytest.raises(UpstreamUnavailableError, match=r"did not answer within 0\.3 s"):
        one(model, timeout_s=0.3, tries=1)


def test_one_that_dies_in_its_answer_or_is_not_there(model: DecisionServer) -> None:
    def die(handler: Any, body: Any) -> bool:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"model": ')
        handler.close_connection = True
        return True

    model.trick = die
    with pytest.raises(UpstreamUnavailableError, match=r"cannot be reached .RemoteProtocolError."):
        one(model, tries=1)
    model.url = "http://127.0.0.1:9"
    with pytest.raises(UpstreamUnavailableError, match=r"cannot be reached .ConnectError."):
        one(model, tries=1)


@pytest.mark.parametrize(
    "lie",
    [
        b"no json",
        b"[1]",
        b'{"model": "m", "answers": {}}',
        b"[" * 100_000,
        {"probabilities": {"ads": 0.9}},
        {"probabilities": {"ads": 0.9, "bills": 0.1, "more": 0.0}},
        {"probabilities": {"ads": 0.9, "bills": 0.9}},
        {"probabilities": {"ads": 1.5, "bills": -0.5}},
        {"probabilities": {"ads": math.nan, "bills": 1.0}},
        {"probabilities": {"ads": True, "bills": False}},
        {"probabilities": {"ads": "0.9", "bills": 0.1}},
        {"probabilities": [0.9, 0.1]},
        {"type": "score", "probabilities": {"ads": 0.9, "bills": 0.1}},
        {"model": "", "probabilities": {"ads": 0.9, "bills": 0.1}},
        {"model": "\ud800", "probabilities": {"ads": 0.9, "bills": 0.1}},
    ],
)
def test_lies_are_no_answers(model: DecisionServer, lie: Any) -> None:
    if isinstance(lie, dict):
        answer = {"type": "choice", **lie}
        lie = json.dumps({"model": answer.pop("model", "m"), "answers": {"q": answer}}).encode()
    model.trick = lambda handler, body: send(handler, 200, lie)
    with pytest.raises(UpstreamAnswerError):
        one(model)
    assert len(model.bodies) == 1  # a lie is not asked for again


def test_a_packed_answer_is_not_unpacked(model: DecisionServer) -> None:
    packed = gzip.compress(gzip.compress(b" " * (64 << 20)))
    assert len(packed) < 10_000
    model.trick = lambda handler, body: send(handler, 200, packed, content_encoding="gzip, gzip")
    with pytest.raises(UpstreamAnswerError, match="is packed"):
        one(model)


def test_an_endless_answer_is_cut_off(model: DecisionServer) -> None:
    model.trick = lambda handler, body: send(handler, 200, b" " * (2 << 20))
    with pytest.raises(UpstreamAnswerError, match="more than 1048576 bytes"):
        one(model)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 422])
def test_refusals_and_redirects(model: DecisionServer, status: int) -> None:
    model.trick = lambda handler, body: send(handler, status, {}, location=f"{model.url}/elsewhere")
    with pytest.raises(UpstreamRefusedError, match=f"status {status}") as raised:
        one(model, key=KEY)
    assert raised.value.status == status
    assert len(model.bodies) == 1  # a redirect would take key and state to where it says


def test_so_many_at_once_and_in_order(model: DecisionServer) -> None:
    states = ["a" * count for count in range(20)]
    model.hold_s = 0.02
    found = {3: UpstreamAnswer("known", {})}
    asking(model, lambda asked: asked.ask_all(states, TEAM, found), at_once=3)
    assert found.pop(3).model == "known"
    assert {n: answer.probs["ads"] for n, answer in found.items()} == {
        n: round((1 + n) / (2 + n), 4) for n in range(20) if n != 3
    }
    assert len(model.bodies) == 19
    assert 1 < model.most <= 3


def test_the_first_error_ends_all(model: DecisionServer) -> None:
    model.trick = lambda handler, body: "b" in body["state"] and send(handler, 422, {})
    with pytest.raises(UpstreamError) as raised:
        asking(model, lambda asked: asked.ask_all(["a", "b", *["a"] * 50], TEAM, {}), at_once=2)
    assert raised.value.place == 1
    assert len(model.bodies) < 10


def test_a_text_of_a_structure_is_sent_as_the_structure() -> None:
    assert as_state('{"a": [1, "b"]}') == {"a": [1, "b"]}
    assert as_state('{"a": 1, "a": 2}') == '{"a": 1, "a": 2}'  # a text that loses something as a structure stays one
    assert as_state("[NaN]") == "[NaN]"
    assert [as_state(text) for text in ("{broken", "3", '"a"', "a")] == ["{broken", "3", '"a"', "a"]
    assert asked_state({"state": '["a"]', "other": "ignored"}, TEAM) == ["a"]


@pytest.mark.parametrize(
    "url", ["ftp://host", "host", "http://", "http://me:pass@host", "http://host/?key=1", "http://[::1"]
)
def test_odd_urls_are_refused_without_being_said(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Upstream(url)
    assert "pass" not in str(raised.value).replace("password", "")


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/systemone"])
def test_the_endpoint(end: str) -> None:
    assert Upstream(f"https://host/base{end}").endpoint == "https://host/base/v1/systemone"


@pytest.mark.parametrize("key", ["sk-\u00e9", "sk-1\nx: y", "\ufeffsk"])
def test_keys_that_no_header_can_have(key: str) -> None:
    with pytest.raises(ConfigError, match="no header can have") as raised:
        Upstream("http://host", key=key)
    assert key not in str(raised.value)


@needs("openssl")
def test_an_authority_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["-keyout", str(tmp_path / "tls.key"), "-out", str(tmp_path / "tls.crt")]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *files]
    subprocess.run([*made, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    with decision_server(tls) as model:
        with pytest.raises(UpstreamUnavailableError, match="cannot be reached"):
            one(model, tries=1)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls.crt"))
        assert one(model).model == "letters-1"
