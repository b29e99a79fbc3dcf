"""An artifact that corrects another model, served: the model is asked over real HTTP, and it fails in every way."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import chromium, needs_chromium, visit
from decision_server import DecisionServer, decision_server, send
from head_artifacts import letter_rows, letters
from playwright.sync_api import expect
from pydantic import ValidationError
from server_process import server_process
from serving import GIVE_UP_S, on_uvicorn, settings, started
from tiny_sentence_encoder import sentence_encoder_folder

import laplora
from laplora.prompts.templates import MODEL_PROBS
from laplora.upstream.remote_model import remote_model
from service.app import create_app

QUESTION = {"type": "choice", "instructions": "Early?", "criteria": {"no": "it is late", "yes": None}}
OTHER = {"type": "noul", "instructions": "Is it spam?"}
KEY = "sk-secret-4711"
pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that corrects letters-1, by rows that bring its answers along."""
    folder = tmp_path_factory.mktemp("upstream")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPLORA_CACHE", str(folder / "cache"))
        name = str(sentence_encoder_folder(folder / "encoder", letters("[CLS] $A [SEP]")))
        remote = remote_model("http://127.0.0.1:9", QUESTION, encoder=name)
        rows = [
            {"state": row["text"], "label": row["label"], MODEL_PROBS: {"no": 0.4, "yes": 0.6}}
            for row in letter_rows(80, shortest=3)
        ]
        own = laplora.FitSettings.model_validate({"calibration": {"target_risk": 0.3}})
        fitted = laplora.fit(remote.classifier("letters-1", "cpu"), rows, settings=own, progress=False)
        return fitted.save(folder / "early", base=name)


@asynccontextmanager
async def served(artifact: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setenv("LAPLORA_CACHE", str(artifact.parent / "cache"))
    own = settings(artifact="early", artifacts_root=artifact.parent, **values)
    async with started(create_app(own)) as client:
        yield client


async def predict(client: httpx.AsyncClient, *inputs: dict[str, Any], **options: Any) -> httpx.Response:
    return await client.post("/predict", json={"inputs": list(inputs), "options": options})


async def test_the_model_is_asked_unless_its_answer_comes_along(
    model: DecisionServer, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [{"state": row["text"], "id": str(i)} for i, row in enumerate(letter_rows(6, 3, shortest=3))]
    async with served(artifact, monkeypatch, upstream_url=model.url, upstream_key=KEY) as client:
        asked = (await predict(client, *inputs)).json()["predictions"]
        assert len(model.bodies) == 6
        assert {body["model"] for body in model.bodies} == {"letters-1"}  # the version that was fitted
        assert set(model.keys) == {f"Bearer {KEY}"}
        assert {json.dumps(body["questions"]) for body in model.bodies} == {json.dumps({"question": QUESTION})}
        brought = [{**one, MODEL_PROBS: answer["map_probs"]} for one, answer in zip(inputs, asked, strict=True)]
        again = (await predict(client, *brought)).json()["predictions"]
        assert len(model.bodies) == 6
        for one, other in zip(asked, again, strict=True):
            assert (one["id"], one["decision"]) == (other["id"], other["decision"])
            assert one["probs"] == pytest.approx(other["probs"], abs=1e-6)
        assert {answer["decision"] for answer in asked} >= {"accept"}
        body = {"inputs": [{**one, "label": "yes"} for one in inputs], "options": {"resamples": 10}}
        measured = await client.post("/evaluate", json=body)
        assert measured.status_code == 200, measured.text
        assert set(measured.json()["methods"]) >= {"map", "pooled"}


async def test_it_answers_its_question_in_the_protocol(
    model: DecisionServer, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"state": "a b c d", "questions": {"q": QUESTION}}
    async with served(artifact, monkeypatch, upstream_url=model.url) as client:
        answer = (await client.post("/v1/systemone", json=body)).json()["answers"]["q"]
        (predicted,) = (await predict(client, {"state": "a b c d"})).json()["predictions"]
        assert answer["probabilities"] == pytest.approx(predicted["probs"], abs=1e-6)
        assert answer["x_laplora"]["uncorrected"] == pytest.approx(predicted["map_probs"], abs=1e-6)
        sure = {"question": {"type": "choice", "probabilities": {"no": 0, "yes": 0.99}}}
        model.trick = lambda handler, body: send(handler, 200, {"model": "letters-1", "answers": sure})
        answer = (await client.post("/v1/systemone", json=body)).json()["answers"]["q"]
        assert answer["x_laplora"]["uncorrected"] == {"no": 0, "yes": 0.99}  # its own words
        model.trick = None
        refused = await client.post("/v1/systemone", json={"state": "a", "questions": {"q": OTHER}})
        assert refused.status_code == 422
        structured = await client.post("/v1/systemone", json={**body, "state": {"a": ["b", 1]}})
        assert structured.status_code == 200, structured.text
        wrapped = await client.post("/v1/systemone", json={**body, "state": {"state": "a"}})
        assert wrapped.status_code == 200, wrapped.text
        assert model.bodies.pop()["state"] == {"state": "a"}  # the whole state
        long = await client.post("/v1/systemone", json={**body, "state": "a " * 200})
        assert long.status_code == 200, long.text
        assert "truncated" in long.json()["answers"]["q"]["x_laplora"]["flags"]
        assert model.bodies.pop()["state"] == "a " * 200
        assert model.bodies[-1]["state"] == {"a": ["b", 1]}  # as a client that asks the model itself would send it


async def test_what_was_not_fitted_is_refused_or_passes(
    model: DecisionServer, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"state": "t t", "questions": {"own": QUESTION, "other": OTHER}}
    async with served(artifact, monkeypatch, upstream_url=model.url) as client:
        model.name = "letters-2"
        changed = await predict(client, {"state": "a b"})
        assert changed.status_code == 409
        assert changed.json()["error"]["code"] == "upstream_changed"
        assert "'letters-1', and 'letters-2' answers" in changed.json()["error"]["message"]
    async with served(artifact, monkeypatch, upstream_url=model.url, upstream_unfitted="pass") as client:
        (passed,) = (await predict(client, {"state": "a b"})).json()["predictions"]
        assert passed["decision"] == "review"
        assert "other_model" in passed["flags"]
        assert passed["probs"] == passed["map_probs"]
        assert "another model answered" in passed["decision_reason"]
        rows = {"inputs": [{"state": "a b", "label": "yes"}, {"state": "c", "label": "no"}]}
        assert (await client.post("/evaluate", json=rows)).status_code == 409  # figures are of what was fitted
        model.name = "letters-1"
        answers = (await client.post("/v1/systemone", json=body)).json()["answers"]
        assert list(answers) == ["own", "other"]
        assert answers["other"]["noul"] == pytest.approx(3 / 4)
        assert answers["other"]["x_laplora"]["flags"] == ["not_fitted"]
        assert answers["other"]["x_laplora"]["decision"] == "review"
        assert answers["own"]["x_laplora"]["artifact"] == "early"


@pytest.mark.parametrize(
    ("status", "code", "answered"),
    [
        (503, "upstream_unavailable", 503),
        (401, "upstream_failed", 502),
        (422, "invalid_input", 422),
        (200, "upstream_failed", 502),
    ],
)
async def test_failures_of_the_model_are_told_as_such(
    status: int, code: str, answered: int, model: DecisionServer, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.trick = lambda handler, body: send(handler, status, {"secret": "of the model"}, retry_after="0")
    async with served(artifact, monkeypatch, upstream_url=model.url, upstream_key=KEY) as client:
        failed = await predict(client, {"state": "a b"})
        assert (failed.status_code, failed.json()["error"]["code"]) == (answered, code)
        assert ("retry-after" in failed.headers) == (status == 503)
        for hidden in (KEY, "secret", model.url):
            assert hidden not in failed.text
        own = await client.post("/v1/systemone", json={"state": "a", "questions": {"q": QUESTION}})
        assert own.status_code == answered
        assert "detail" in own.json()
        # What brings its answer along needs no model.
        assert (await predict(client, {"state": "a", MODEL_PROBS: {"no": 0.5, "yes": 0.5}})).status_code == 200


async def test_a_slow_model_ends_with_the_request(
    model: DecisionServer, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.hold_s = 2.0
    async with served(artifact, monkeypatch, upstream_url=model.url) as client:
        late = await predict(client, {"state": "a b"}, timeout_s=0.3)
        assert late.status_code in (503, 504), late.text


async def test_odd_inputs_are_refused_and_not_asked_about(
    model: DecisionServer, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(artifact, monkeypatch, upstream_url=model.url) as client:
        for odd, field in (
            ({"state": " "}, "inputs.0.state"),
            ({"text": "a"}, "inputs.0.state"),
            ({"prompt": "a"}, "inputs.0.state"),
            ({"state": 3}, "inputs.0.state"),
            ({"state": "a", MODEL_PROBS: {"no": 1}}, "inputs.0.model_probs"),
            ({"state": "a", MODEL_PROBS: "no"}, "inputs.0.model_probs"),
        ):
            refused = await predict(client, odd)
            assert refused.status_code == 422, (odd, refused.text)
            assert refused.json()["error"]["field"] == field, refused.text
        assert not model.bodies
    async with served(artifact, monkeypatch) as client:
        untold = await predict(client, {"state": "a"})
        assert untold.status_code == 422
        assert "was not told where the model 'letters-1' is" in untold.json()["error"]["message"]


async def job(client: httpx.AsyncClient, lines: list[dict[str, Any]], *wanted: str) -> dict[str, Any]:
    """Return a job of lines once its status is one of these."""
    upload = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    begun = await client.post("/evaluate/jobs", content=upload, headers={"content-type": "application/x-ndjson"})
    assert begun.status_code == 202, begun.text
    return await until(client, begun.json()["id"], *wanted)


async def until(client: httpx.AsyncClient, name: str, *wanted: str) -> dict[str, Any]:
    async with asyncio.timeout(GIVE_UP_S):
        while (found := (await client.get(f"/evaluate/jobs/{name}")).json())["status"] not in wanted:
            await asyncio.sleep(0.02)
    return dict(found)


async def test_a_job_asks_too(model: DecisionServer, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"state": row["text"], "label": row["label"]} for row in letter_rows(12, 3, shortest=3)]
    lines[0] |= {MODEL_PROBS: {"no": 0.5, "yes": 0.5}}
    model.trick = lambda handler, body: send(handler, 500, {})
    async with served(artifact, monkeypatch, upstream_url=model.url) as client:
        paused = await job(client, lines, "paused", "done", "failed")  # it is down altogether
        assert paused["paused"]["code"] == "upstream_unavailable"
        answered: list[Any] = []
        model.trick = lambda handler, body: bool(answered.append(body))  # type: ignore[func-returns-value]
        found = await until(client, paused["id"], "done", "failed", "cancelled")
        assert (found["status"], found["bad_rows"]) == ("done", []), found
        assert len(answered) == 11
        assert set(found["result"]["methods"]) >= {"map", "pooled"}
        page = (await client.get(f"/evaluate/jobs/{found['id']}/report")).text
        assert all(said in page for said in ("letters-1", "choice: Early? (no, yes)", "sentence encoder"))
        (listed,) = (await client.get("/artifacts")).json()["artifacts"]
        assert listed["corrects"] == "letters-1"


@pytest.mark.parametrize(
    ("status", "code", "asked"),
    [(500, "upstream_unavailable", 12), (200, "upstream_failed", 1), (422, "invalid_input", 1)],
)
async def test_a_job_leaves_out_a_row_that_the_model_never_answers(
    status: int, code: str, asked: int, model: DecisionServer, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.trick = lambda handler, body: "z" in body["state"] and send(handler, status, {})
    async with served(artifact, monkeypatch, upstream_url=model.url) as client:
        lines = [{"state": f"a {'z' if i == 5 else i}", "label": "yes" if i % 2 else "no"} for i in range(20)]
        found = await job(client, lines, "done", "failed", "cancelled")
        assert found["status"] == "done", found
        assert [(row["line"], row["code"]) for row in found["bad_rows"]] == [(6, code)]
        states = Counter(body["state"] for body in model.bodies)
        assert states.pop("a z") == asked
        assert set(states) - {"test"} == {line["state"] for line in lines} - {"a z"}
        assert states.total() < 19 + 3 + 8  # answers are kept, but for those under way at the error


async def test_a_job_that_the_model_refuses_fails_with_its_reason(
    model: DecisionServer, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.trick = lambda handler, body: send(handler, 401, {})
    async with served(artifact, monkeypatch, upstream_url=model.url) as client:
        found = await job(client, [{"state": "a b"}] * 20, "failed")
        assert found["error"]["code"] == "upstream_failed"
        assert len(model.bodies) <= 8  # not row by row


async def test_rows_that_wait_for_the_model_have_their_room(
    model: DecisionServer, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.hold_s = 1.0
    values = {"max_queue_rows": 8, "max_inputs": 4, "client_share": 1.0}
    async with served(artifact, monkeypatch, upstream_url=model.url, **values) as client:
        rows = [{"state": f"a {i}"} for i in range(4)]
        answers = await asyncio.gather(*(predict(client, *rows) for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]


async def test_our_own_server_as_the_model(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that corrects a server that corrects the model: both speak the same protocol."""
    with decision_server() as model:
        monkeypatch.setenv("LAPLORA_CACHE", str(artifact.parent / "cache"))
        own = settings(artifact="early", artifacts_root=artifact.parent, upstream_url=model.url)
        app = create_app(own)
        async with started(app) as first, on_uvicorn(app) as (_, port):
            answered = (await predict(first, {"state": "a b c"})).json()["predictions"][0]
            remote = remote_model(f"http://127.0.0.1:{port}", QUESTION)
            ((row,), name) = await asyncio.to_thread(remote.answered, [{"state": "a b c"}], False)
            assert name == "early"  # an artifact's name is what it calls itself
            assert row[MODEL_PROBS] == pytest.approx(answered["probs"], abs=1e-6)


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    found = settings(upstream_url="http://host/v1", upstream_key_file=key, upstream_model="m").upstream
    assert found is not None
    assert (found.key, found.model) == (KEY, "m")
    assert KEY not in repr(settings(upstream_url="http://host", upstream_key=KEY))
    for odd in (
        {"upstream_url": "http://me:word@host"},
        {"upstream_url": "http://host", "upstream_key_file": tmp_path / "none"},
        {"upstream_url": "http://host", "upstream_key_file": key, "upstream_key": KEY},
        {"upstream_unfitted": "guess"},
    ):
        with pytest.raises(ValidationError) as raised:
            settings(**odd)
        assert "word@" not in str(raised.value.errors(include_input=False))


@needs_chromium
def test_the_page_shows_both_answers_and_whose_they_are(
    model: DecisionServer, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAPLORA_CACHE", str(artifact.parent / "cache"))
    command = ["-m", "laplora", "serve", str(artifact), "--device", "cpu", "--upstream-url", model.url]
    with (
        server_process(command) as process,
        process.client() as client,
        chromium() as browser,
        visit(browser, str(client.base_url)) as visited,
    ):
        ask = visited.page.get_by_role("button", name="Ask", exact=True)
        visited.page.get_by_label("state", exact=True).fill("a b c d")
        ask.click()
        expect(visited.page.locator(".verdict")).to_be_visible()
        (predicted,) = client.post("/predict", json={"inputs": [{"state": "a b c d"}]}).json()["predictions"]
        shown = visited.page.locator(".comparison tbody tr").first.inner_text().split("\n")
        assert f"{100 * predicted['map_probs'][predicted['label']]:.1f} %" in " ".join(shown), shown
        visited.show("artifact")
        expect(visited.page.locator("#artifact-about")).to_contain_text("letters-1")
        visited.show("playground")
        model.name = "letters-2"
        ask.click()
        expect(visited.page.get_by_text("'letters-2' answers")).to_be_visible()
