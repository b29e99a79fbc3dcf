"""POST /v1/systemone, by its own client and its own conformance checks: answers, refusals, hostile states."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from jevcompat import checks, runner
from jevcompat.spec import REQUIREMENTS
from serving import FakePredictor, Served, artifacts_in, on_uvicorn, serve, settings, started
from tiny_runs import BAD, GOOD, NOUNS, FinishedRun
from typesafe_sdk import Choice, Noul, RetryPolicy, Score, TypeSafeClient
from typesafe_sdk import _version as sdk_version
from typesafe_sdk._core import errors as raised

from laplora.artifact.folder import read_artifact
from laplora.prompts.questions import Question
from laplora.prompts.templates import TEMPLATES
from service.app import create_app
from service.http.routes import systemone
from service.http.schemas.systemone import SDK_VERSION
from service.security.keys_file import Key, digest, write_keys

pytestmark = pytest.mark.anyio
ONCE = RetryPolicy(max_retries=0)
TEAMS = {"billing": "Payments", "sales": None}
LEVELS = ["calm", "It is cross", "furious"]
SPAM = Question(type="noul", instructions="Spam?", yes_label="spam", options={"spam": "ads"})
TEAM = Question(instructions="Whose is it?", options={"billing": "Payments"}, state={"text": "body"})
MOOD = Question(type="score", instructions="How cross?", options={"cross": "It is cross"}, state={"text": None})
WHICH = Question(instructions="Which is it?")


#: By name each artifact's question, labels and template.
Declared = dict[str, tuple[Question, Any, str]]
OWN: Declared = {
    "spam": (SPAM, ("ham", "spam"), "sentiment"),
    "team": (TEAM, tuple(TEAMS), "sentiment"),
    "mood": (MOOD, ("calm", "cross", "furious"), "sentiment"),
    "which": (WHICH, "ABCDE", "multiple_choice"),
}


@asynccontextmanager
async def serving(root: Path, declared: Declared = OWN, **values: Any) -> AsyncIterator[Served]:
    more: dict[str, Any] = {"most_options": 3, "max_tokens": 2000}
    first, *others = (
        FakePredictor(name, path=root / name, template=TEMPLATES[template], labels=labels, question=question, **more)
        for name, (question, labels, template) in declared.items()
    )
    if not (root / first.artifact.name).exists():
        artifacts_in(root, *declared)
    values |= {"artifact": first.artifact.name, "also_load": tuple(declared)[1:], "artifacts_root": root}
    async with serve(first, *others, max_artifacts=8, **values) as served:
        yield served


@asynccontextmanager
async def sdk(served: Served) -> AsyncIterator[TypeSafeClient]:
    """Yield the protocol's client of a running server."""
    async with on_uvicorn(served.app) as (_, port):
        with TypeSafeClient(base_url=f"http://127.0.0.1:{port}", api_key="any", retry=ONCE, timeout=60) as client:
            yield client


async def post(served: Served, **body: Any) -> httpx.Response:
    return await served.client.post("/v1/systemone", json=body)


def noul(**more: Any) -> dict[str, Any]:
    return {"q": {"type": "noul", "instructions": "Spam?", "criteria": {"true": "ads"}, **more}}


async def test_the_official_client_reads_each_type_over_one_state(tmp_path: Path) -> None:
    questions = {
        "spam": Noul(instructions="Spam?", criteria={"true": "ads", "false": None}),
        "team.1": Choice(instructions="Whose is it?", criteria=TEAMS),
        "mood": Score(instructions="How cross?", criteria=LEVELS),
        "which": Choice(instructions="Which is it?", criteria={"ox": "an ox 20000", "cow": None, "🐎": "a horse"}),
    }
    async with serving(tmp_path) as served, sdk(served) as client:
        answer = await asyncio.to_thread(client.system_one, state="fine 30000", questions=questions)
        assert answer.model == "jev-latest"
        assert list(answer.answers) == list(questions)
        assert answer.nouls["spam"].noul == pytest.approx(0.7)  # the fake says 0.3 of its first label, ham
        team = answer.choices["team.1"]
        assert (team.choice, team.confidence) == ("sales", pytest.approx(0.4))
        assert team.probabilities == pytest.approx({"billing": 0.3, "sales": 0.7})
        mood = answer.scores["mood"]
        assert mood.legend == dict(enumerate(LEVELS))
        assert mood.probabilities == pytest.approx({0: 0.3, 1: 0.35, 2: 0.35})
        assert (mood.score, mood.confidence) == (pytest.approx(1.05), pytest.approx(0.025))
        which = answer.choices["which"]
        assert which.probabilities == pytest.approx({"ox": 0.3, "cow": 0.35, "🐎": 0.35})
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3 * 10 + 23, 0)
        one = await asyncio.to_thread(
            client.system_one, state={"body": "fine"}, questions={"t": questions["team.1"]}, model="team"
        )
        assert (one.model, one.choices["t"].choice) == ("team", "sales")


async def test_laploras_part_is_what_predict_says_and_feedback_takes_its_ids(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        (native,) = (await served.predict("fine 7", options={"detail": "full"})).json()["predictions"]
        body = (await post(served, state="fine 7", questions=noul(), seed=7)).json()
        own = body["answers"]["q"]["x_laplora"]
        names = {"ham": "false", "spam": "true", "negative": "negative"}
        assert (own["artifact"], own["digest"]) == ("spam", "sha256:spam")
        for field in ("decision", "decision_reason", "flags"):
            assert own[field] == native[field]
        assert own["probs_std"] == {names[label]: std for label, std in native["probs_std"].items()}
        assert {part: own["uncertainty"][part] for part in native["uncertainty"]} == native["uncertainty"]
        assert body["usage"]["input_tokens"] == native["tokens"]
        told = {"items": [{"prediction_id": own["prediction_id"], "label": "spam"}]}
        assert (await served.client.post("/feedback", json=told)).json()["results"][0]["status"] == "recorded"
        assert set(body) == {"model", "answers", "usage"}


async def test_more_options_than_a_row_of_the_fit_had_are_flagged_and_too_many_refused(tmp_path: Path) -> None:
    def which(count: int) -> dict[str, Any]:
        criteria = {f"option {i}": None for i in range(count)}
        return {"w": {"type": "choice", "instructions": "Which is it?", "criteria": criteria}}

    async with serving(tmp_path) as served:
        for count in (2, 3, 4, 5):
            answer = (await post(served, state="a", questions=which(count))).json()["answers"]["w"]
            assert list(answer["probabilities"]) == [f"option {i}" for i in range(count)]
            own = answer["x_laplora"]
            assert (own["decision"], "more_options" in own["flags"]) == (("accept", "review")[count > 3], count > 3)
        assert "a row of the fit had 3" in own["decision_reason"]
        for count, said in ((6, "2 to 5 options, got 6"), (255, "got 255"), (256, "at most 255"), (257, "256 is")):
            refused = await post(served, state="a", questions=which(count))
            assert refused.status_code == 422
            assert said in refused.json()["detail"][0]["msg"]
        (loc,) = [one["loc"] for one in (await post(served, state="a", questions=which(6))).json()["detail"]]
        assert loc == ["body", "questions", "w", "criteria"]


async def test_another_question_is_refused_with_those_that_are_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, sdk(served) as client:
        other = Noul(instructions="Is it an advertisement?")
        with pytest.raises(raised.TypeSafeUnprocessableEntityError) as refused:
            await asyncio.to_thread(client.system_one, state="a", questions={"mine": other})
        assert "questions.mine: no loaded artifact has this question" in str(refused.value)
        assert "Spam?" in str(refused.value)
        with pytest.raises(raised.TypeSafeUnprocessableEntityError, match="'team' answers"):
            await asyncio.to_thread(client.system_one, state="a", questions={"q": Noul(**noul()["q"])}, model="team")
        with pytest.raises(raised.TypeSafeNotFoundError, match="no artifact of this name") as unknown:
            await asyncio.to_thread(client.system_one, state="a", questions={"mine": other}, model="jev-1")
        assert unknown.value.body["detail"]["error_type"] == "artifact_not_found"  # type: ignore[index]
        both = noul() | {"mine": {"type": "noul"}, "also": {"type": "noul"}}
        detail = (await post(served, state="a", questions=both)).json()["detail"]
        assert [one["loc"] for one in detail] == [["body", "questions", name] for name in ("mine", "also")]
        assert not served.predictor.batches


async def test_models_are_listed_and_their_questions_can_be_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, sdk(served) as client:
        listed = await asyncio.to_thread(client.models.list)
        names = ["spam", "team", "mood", "which"]
        assert [one.name for one in listed.models] == [*names, "jev-latest"]
        assert {one.release_date for one in listed.models} == {"2026-12-01"}
        assert listed.models[0].description == "noul: Spam?"
        loaded = {one["name"]: one for one in (await served.client.get("/artifacts")).json()["artifacts"]}
        spam, team, mood, which = (loaded[name]["question"] for name in names)
        assert (spam["criteria"], spam["labels"]) == ({"true": "ads", "false": None}, ["ham", "spam"])
        assert (mood["criteria"], mood["state"]) == (LEVELS, {"text": None})
        assert (which["criteria"], which["fewest_options"], which["most_options"]) == (None, 2, 5)
        for question in (spam, team, mood):
            asked = {name: question[name] for name in ("type", "instructions", "criteria")}
            assert (await post(served, state="a", questions={"q": asked})).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"state": NaN, "questions": {}}', 422, "valid JSON"),
        (b'{"state": "\\ud800", "questions": {}}', 422, "valid JSON"),
        (b'{"state": ' + b"[" * 1000 + b"]" * 1000 + b"}", 422, "valid JSON"),
        (b'{"state": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 413, "members"),
        (b'{"state": "' + b"a" * 10_000_000 + b'"}', 413, "max_body_bytes"),
        (b'{"state": {"a": 1, "a": 2}}', 422, "same key twice"),
        (b'{"state": null, "questions": {"q": {"type": "noul"}}}', 422, "state"),
        (b'{"state": "a", "questions": {"": {"type": "noul"}}}', 422, "at least 1 character"),
        (b'{"state": "a", "questions": {}}', 422, "at least 1 item"),
        (b'{"state": "a", "questions": {"q": {"type": "box"}}}', 422, "'choice', 'noul', 'score'"),
        (b'{"state": "a", "questions": {"q": {"type": "choice", "criteria": {"a": 1}}}}', 422, "criteria"),
        (b'{"state": "a", "questions": {"q": {"type": "noul", "criteria": {"yes": "a"}}}}', 422, "not permitted"),
        (b'{"state": "a", "questions": {"q": {"type": "noul", "options": []}}}', 422, "not permitted"),
        (b'{"state": "a", "questions": {"q": {"type": "score", "criteria": {"0": "a"}}}}', 422, "valid list"),
        (b'{"state": "a", "assets": {"i": {}}, "questions": {"q": {"type": "noul"}}}', 422, "only text"),
        (b'{"state": "a", "model": 3, "questions": {"q": {"type": "noul"}}}', 422, "model"),
    ],
)
async def test_what_is_hostile_or_wrong_is_refused_in_the_protocols_shape(
    served: Served, body: bytes, status: int, said: str
) -> None:
    response = await served.client.post(
        "/v1/systemone", content=body, headers={"content-type": "application/json", "authorization": "Bearer x"}
    )
    assert response.status_code == status
    detail = response.json()["detail"]
    assert said in response.text
    if status == 422:
        assert all(one["loc"][0] == "body" and one["msg"] and one["type"].startswith("invalid") for one in detail)
    else:
        assert set(detail) == {"error_type", "message"}


async def test_a_state_that_cannot_be_read_is_at_fault_itself(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        for state in (" ", "w " * 3000, {"other": "a"}, {"text": None}):
            kind = "too_many_tokens" if len(state) > 3000 else "invalid_input"
            refused = await post(served, state=state, questions=noul())
            assert refused.status_code == 422
            (problem,) = refused.json()["detail"]
            assert (problem["loc"], problem["type"]) == (["body", "state"], kind)
        deep: Any = "a"
        for _ in range(90):
            deep = [deep]
        assert (await post(served, state=deep, questions=noul())).status_code == 200
    async with serve(FakePredictor(labels=("ham", "spam"), question=SPAM), max_inputs=2) as served:
        several = {name: noul()["q"] for name in "abc"}
        for questions, status in ((several, 413), ({"a": several["a"], "b": several["b"]}, 200)):
            assert (await post(served, state="a", questions=questions)).status_code == status


async def test_overload_and_a_server_that_leaves_are_told_as_the_client_reads_them(tmp_path: Path) -> None:
    async with serving(tmp_path, max_inputs=1, max_queue_rows=1, client_share=1) as served, sdk(served) as client:
        spam = {"q": Noul(**noul()["q"])}
        async with served.occupied():
            waiting = asyncio.create_task(post(served, state="a", questions=noul()))
            await served.until(lambda: served.state.backend.queue.rows == 1)
            with pytest.raises(raised.TypeSafeRateLimitError, match="queue") as full:
                await asyncio.to_thread(client.system_one, state="a", questions=spam)
            assert full.value.retry_after_ms == 1000
        assert (await waiting).status_code == 200
        served.state.lifecycle.drain()
        with pytest.raises(raised.TypeSafeInternalServerError, match="503"):
            await asyncio.to_thread(client.system_one, state="a", questions=spam)


async def test_questions_of_several_artifacts_wait_beside_each_other_and_fail_together(tmp_path: Path) -> None:
    questions = noul() | {"mood": {"type": "score", "instructions": "How cross?", "criteria": LEVELS}}
    async with serving(tmp_path) as served:
        async with served.occupied():
            asked = asyncio.create_task(post(served, state="a", questions=questions))
            await served.until(lambda: served.queued_plans == 3)
            # One that fails does not wait for the others.
            team = {"t": {"type": "choice", "instructions": "Whose is it?", "criteria": TEAMS}}
            refused = await post(served, state={"body": "a"}, questions=noul() | team)
            assert (refused.status_code, served.queued_plans) == (422, 3)
        assert (await asked).status_code == 200
        mood = served.state.artifacts.shelf.find("mood")
        mood.nan = True
        failed = await post(served, state="a", questions=questions)
        assert failed.status_code == 422
        assert failed.json()["detail"][0]["type"] == "unscorable_input"
        assert served.queued_plans == 0


async def test_an_artifact_that_was_replaced_meanwhile_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as served:
        real = systemone._asked

        def earlier(*args: Any) -> Any:
            found, others = real(*args)
            manifest = served.predictor.artifact.manifest
            former: Any = SimpleNamespace(name="spam", digest="sha256:former", manifest=manifest)
            return [replace(one, artifact=former) for one in found], others

        monkeypatch.setattr(systemone, "_asked", earlier)
        refused = await post(served, state="a", questions=noul())
        assert (refused.status_code, refused.json()["detail"]["error_type"]) == (503, "not_ready")


async def test_a_client_that_leaves_takes_the_questions_of_every_artifact_with_it(tmp_path: Path) -> None:
    questions = noul() | {"mood": {"type": "score", "instructions": "How cross?", "criteria": LEVELS}}
    async with (
        serving(tmp_path) as served,
        on_uvicorn(served.app) as (_, port),
        served.occupied(),
        httpx.AsyncClient(timeout=None) as client,
    ):
        body = {"state": "a", "questions": questions}
        asked = asyncio.create_task(client.post(f"http://127.0.0.1:{port}/v1/systemone", json=body))
        await served.until(lambda: served.queued_plans == 3)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await served.until(lambda: served.queued_plans == 1)


@asynccontextmanager
async def of_run(run: FinishedRun) -> AsyncIterator[TypeSafeClient]:
    app = create_app(settings(artifact=run.artifact.name, artifacts_root=run.artifact.parent))
    async with started(app), on_uvicorn(app) as (_, port):
        with TypeSafeClient(base_url=f"http://127.0.0.1:{port}", api_key="any", retry=ONCE, timeout=100) as client:
            yield client


async def test_trained_artifacts_answer_the_question_of_their_configuration(
    sentiment_run: FinishedRun, choices_run: FinishedRun
) -> None:
    async with of_run(sentiment_run) as client:
        ask = partial(client.system_one, questions={"q": Noul(instructions="Is it a good review?")})
        good, bad = [await asyncio.to_thread(ask, state=f"a {word} {NOUNS[0]}") for word in (GOOD[0], BAD[0])]
        assert good.nouls["q"].noul > 0.5 > bad.nouls["q"].noul
    assert read_artifact(choices_run.artifact).manifest.most_options == 3
    async with of_run(choices_run) as client:
        which = Choice(instructions=TEMPLATES["multiple_choice"].text, criteria={"yes": "good", "no": "bad"})
        answer = await asyncio.to_thread(client.system_one, state="Is a good film good?", questions={"q": which})
        assert set(answer.choices["q"].probabilities) == {"yes", "no"}
        assert math.fsum(answer.choices["q"].probabilities.values()) == pytest.approx(1)


def levels(count: int) -> list[str]:
    """Return what the conformance checks ask as so many levels."""
    asked: dict[int, list[str]] = {2: ["Calm", "Very angry"], 3: checks.SCORE["criteria"]}
    return asked.get(count, [f"Level {i}: {'calm' if i == 0 else 'angrier'}" for i in range(count)])


async def test_its_conformance_checks_fail_only_where_a_tasks_artifact_is_no_general_model(tmp_path: Path) -> None:
    """The artifacts here have the questions that most of the checks ask, and read any state."""
    whole: dict[str, Any] = {"state": {"text": None}}
    described = checks.CHOICE["criteria"]
    refund = Question(type="noul", instructions=checks.NOUL["instructions"], yes_label="yes", **whole)
    team = Question(instructions=checks.CHOICE["instructions"], options=described, **whole)
    anger = Question(type="score", instructions=checks.SCORE["instructions"], **whole)
    queue = Question(instructions="Which queue should this ticket go to?")
    declared: Declared = {
        "refund": (refund, ("yes", "no"), "sentiment"),
        "team": (team, tuple(described), "sentiment"),
        "queue": (queue, [f"letter {i}" for i in range(255)], "multiple_choice"),
        **{f"anger-{count}": (anger, levels(count), "sentiment") for count in (2, 3, 5, 10)},
    }
    key, file = "laplora_" + "k" * 32, tmp_path / "keys.json"
    write_keys(file, [Key(id="a", sha256=digest(key), scopes=("predict",))])
    results = []
    for given, more, only in ((None, {}, None), (key, {"auth": "keys", "keys": file}, {"auth"})):
        async with serving(tmp_path, declared, **more) as served, on_uvicorn(served.app) as (_, port):
            run = partial(runner.run, f"http://127.0.0.1:{port}", key=given, only=only)
            results += (await asyncio.to_thread(run)).results
    told = {one.id: [finding.message for finding in one.findings] for one in results if one.status == "fail"}
    assert set(told) == {
        *("noul.criteria", "noul.no-instructions", "choice.null-description"),
        *("request.structured-text", "request.unicode"),
    }
    assert all("no loaded artifact has this question" in message for messages in told.values() for message in messages)
    passed = {one.id for one in results if one.status == "pass"}
    assert set(REQUIREMENTS) - set(told) - passed == {"semantics.batching"}  # it asks three more questions
    assert sdk_version.__version__ == SDK_VERSION
