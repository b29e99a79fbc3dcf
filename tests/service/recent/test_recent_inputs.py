"""Inputs kept for /suggest/recent: none unless asked for, whose they are, how long they stay, and what is answered."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import FakePredictor, artifacts_in, code, on_uvicorn, serve

from laplora.client import AsyncClient, RequestRefusedError
from laplora.prompts.templates import TEMPLATES, PromptTemplate
from service.recent.inputs import RecentInputs
from service.security.keys_file import Key, digest, new_token, write_keys
from training.data.examples import Task
from training.data.files import read_examples

pytestmark = pytest.mark.anyio

SECRET = "zebra-secret"
ENTROPY = {"options": {"method": "entropy"}}


async def listed(client: httpx.AsyncClient, **parameters: Any) -> list[dict[str, Any]]:
    answer = await client.get("/suggest/recent", **parameters)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/jsonl"), answer.text
    return sorted(map(json.loads, answer.text.splitlines()), key=str)


def texts(*given: str) -> list[dict[str, Any]]:
    return [{"text": text} for text in given]


def reachable(root: object) -> Iterator[object]:
    """Every object that another one leads to, but for modules, classes and functions."""
    seen, waiting = set(), [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, types.ModuleType | type | types.FunctionType):
            continue
        seen.add(id(one))
        yield one
        waiting += gc.get_referents(one)


async def test_nothing_is_kept_unless_asked_for() -> None:
    async with serve() as served:
        assert (await served.predict(f"{SECRET} 7")).status_code == 200
        for method in ("POST", "GET", "DELETE"):
            body = {"json": {}} if method == "POST" else {}
            assert code(await served.client.request(method, "/suggest/recent", **body)) == (404, "recent_inputs_off")
        assert len(served.state.recent) == 0
        held = [one for one in reachable(vars(served.state.recent)) if isinstance(one, str | bytes)]
        assert not [one for one in held if (SECRET if isinstance(one, str) else SECRET.encode()) in one]


async def test_what_was_answered_is_kept_once_and_chosen_from_as_labelled_rows(tmp_path: Path) -> None:
    async with serve(recent_inputs=100) as served:
        await served.predict("a 20000", "b 30000", "a 20000")
        await served.predict("a 20000", options={"mode": "map"})
        await served.client.post(
            "/predict", json={"inputs": [{"id": "mine", "text": "c 40000"}, {"prompt": "already"}]}
        )
        assert (await served.predict("d", "")).status_code == 422
        assert (await served.predict(" ".join(["e"] * 100))).status_code == 422
        await served.predict(" ".join(["f"] * 100), options={"truncate": True})
        await served.client.post("/evaluate", json={"inputs": [{"text": "g", "label": "positive"}]})
        await served.client.post("/suggest", json={"inputs": texts("h"), **ENTROPY})
        kept = texts("a 20000", "b 30000", "c 40000", " ".join(["f"] * 100))
        assert await listed(served.client) == kept
        answer = (
            await served.client.post("/suggest/recent", json={"options": {"method": "entropy", "count": 3}})
        ).json()
        metrics = (await served.client.get("/metrics")).text
    assert (answer["rows"], answer["repeated"], answer["artifact"]["name"]) == (4, 0, "fake")
    chosen = [row["text"] for row in answer["inputs"]]
    assert len(chosen) == 3
    assert set(chosen) < {row["text"] for row in kept}
    assert set(answer["inputs"][0]) == {"text", "suggested"}
    assert "laplora_recent_inputs 4.0" in metrics
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(row | {"label": "positive"}) + "\n" for row in answer["inputs"]))
    task = Task("fake", TEMPLATES["sentiment"], ("negative", "positive"))
    examples = read_examples(file, task, "label", {})
    assert [(one.fields, one.label) for one in examples] == [({"text": text}, 1) for text in chosen]


async def test_long_texts_are_kept_too_and_by_another_thread_than_the_event_loops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[str] = []
    add = RecentInputs.add

    def noted(*given: Any) -> None:
        threads.append(threading.current_thread().name)
        add(*given)

    monkeypatch.setattr(RecentInputs, "add", noted)
    async with serve(recent_inputs=100) as served:
        long = [f"{i} " + "word " * 2000 for i in range(10)]
        assert (await served.predict("short")).status_code == 200
        assert (await served.predict(*long, options={"truncate": True})).status_code == 200
        assert sorted(row["text"] for row in await listed(served.client)) == [*long, "short"]
    assert threads[0] == threading.current_thread().name
    assert threads[1].startswith("laplora-parse")


async def test_choices_come_as_they_were_sent() -> None:
    question = {"question": "which?", "choices": ["one", "two"]}
    predictor = FakePredictor(template=TEMPLATES["multiple_choice"], labels=("A", "B", "C"))
    async with serve(predictor, recent_inputs=100) as served:
        await served.client.post(
            "/predict", json={"inputs": [{"choices": ["one", "two"], "question": "which?"}, question]}
        )
        (row,) = (await served.client.post("/suggest/recent", json=ENTROPY)).json()["inputs"]
    assert {name: row[name] for name in question} == question


async def test_a_template_with_a_field_for_the_reasons_is_refused_by_name() -> None:
    offers = FakePredictor(template=PromptTemplate("offers", 1, "Offer: {suggested} Answer:"))
    async with serve(offers, recent_inputs=100) as served:
        sent = await served.client.post("/predict", json={"inputs": [{"suggested": "a refund"}]})
        assert sent.status_code == 200, sent.text
        answer = await served.client.post("/suggest/recent", json=ENTROPY)
        assert await listed(served.client) == [{"suggested": "a refund"}]
    assert code(answer) == (422, "invalid_request")
    assert answer.json()["error"]["field"] == "artifact"
    assert "has a field 'suggested'" in answer.json()["error"]["message"]


async def test_without_any_input_there_is_nothing_to_choose() -> None:
    async with serve(recent_inputs=100) as served:
        answer = await served.client.post("/suggest/recent", json={})
        assert (answer.status_code, answer.json()["rows"], answer.json()["inputs"]) == (200, 0, [])
        refused = await served.client.post("/suggest/recent", json={"options": {"count": 0}})
        assert code(refused) == (422, "invalid_request")
        assert code(await served.client.get("/suggest/recent?artifact=none")) == (404, "artifact_not_found")


async def test_at_most_max_inputs_are_looked_at() -> None:
    async with serve(recent_inputs=100, max_inputs=10) as served:
        for start in range(0, 30, 10):
            await served.predict(*(f"text {i}" for i in range(start, start + 10)))
        answer = (await served.client.post("/suggest/recent", json=ENTROPY)).json()
        assert (answer["rows"], len(await listed(served.client))) == (10, 30)


async def test_no_more_are_looked_at_than_one_request_may_bring() -> None:
    """Nobody can send less of what the server keeps: long inputs that do not fit the queue wait for another time."""
    async with serve(recent_inputs=100, max_inputs=100, max_queue_tokens=1000) as served:
        for start in range(0, 40, 5):
            sent = await served.predict(*(f"{i} " + "word " * 49 for i in range(start, start + 5)))
            assert sent.status_code == 200, sent.text
        answer = await served.client.post("/suggest/recent", json=ENTROPY)
        assert answer.status_code == 200, answer.text
        # One caller may have 500 tokens, and a prompt has 50 and its template's.
        assert 1 <= answer.json()["rows"] == len(answer.json()["inputs"]) < 10
        assert len(await listed(served.client)) == 40


async def test_what_is_looked_at_counts_as_a_body_that_brought_it() -> None:
    async with serve(recent_inputs=100, max_body_bytes=2048, max_in_flight_bytes=2 * 2048, client_share=1.0) as served:
        for i in range(10):
            assert (await served.predict(f"{i} " + "x" * 500)).status_code == 200
        async with served.occupied():
            first = asyncio.create_task(served.client.post("/suggest/recent", json=ENTROPY))
            await served.until(lambda: served.queued_plans == 2)
            assert served.state.body_bytes.total > 3 * 500
            others = [served.client.post("/suggest/recent", json=ENTROPY) for _ in range(3)]
            refused = [asyncio.create_task(one) for one in others]
            await served.until(lambda: any(one.done() for one in refused))
        answers = [await first, *await asyncio.gather(*refused)]
        assert served.state.body_bytes.total == 0
    assert answers[0].json()["rows"] == 3
    assert {code(one) for one in answers if one.status_code != 200} == {(429, "too_many_requests")}


async def test_who_takes_no_answer_holds_no_copy_of_the_sample() -> None:
    """16 MiB are kept, and 20 clients ask for them and read nothing."""
    async with serve(recent_inputs=1000, recent_inputs_bytes=32 * 2**20) as served:
        lines = texts(*(f"{i} " + "x" * 100_000 for i in range(200)))
        served.state.recent.add(served.predictor.artifact.digest, "127.0.0.1", lines)
        assert served.state.recent.size_bytes > 15 * 2**20
        async with on_uvicorn(served.app) as (server, port):
            clients = [await asyncio.open_connection("127.0.0.1", port, limit=1024) for _ in range(20)]
            for _, writer in clients:
                writer.write(b"GET /suggest/recent HTTP/1.1\r\nhost: a\r\n\r\n")

            def waiting() -> list[int]:
                return [one.transport.get_write_buffer_size() for one in server.server_state.connections]

            await served.until(lambda: len(waiting()) == 20 and min(waiting()) > 0)
            assert sum(waiting()) < 16 * 2**20
            for _, writer in clients:
                writer.transport.abort()


def test_of_two_changes_of_what_is_loaded_the_later_one_counts() -> None:
    kept, loaded = RecentInputs(rows=10, size_bytes=100_000, keep_s=60, by_caller=False), {"a"}
    other: list[threading.Thread] = []

    def slowly() -> set[str]:
        before = set(loaded)
        if not other:
            loaded.add("b")
            other.append(threading.Thread(target=kept.follow, args=[lambda: set(loaded)]))
            other[0].start()
            other[0].join(0.2)
        return before

    kept.follow(slowly)
    other[0].join()
    kept.add("b", "one", texts("of an artifact that is loaded"))
    assert len(kept) == 1


async def test_callers_see_and_drop_their_own_and_the_scope_admin_everybodys(tmp_path: Path) -> None:
    scopes: dict[str, Any] = {
        "one": ("predict", "evaluate"),
        "two": ("predict", "evaluate"),
        "only": ("predict",),
        "admin": ("evaluate", "admin"),
    }
    tokens = {name: new_token() for name in scopes}
    keys = tmp_path / "keys.json"
    write_keys(keys, [Key(id=name, sha256=digest(tokens[name]), scopes=given) for name, given in scopes.items()])

    async with serve(auth="keys", keys=keys, recent_inputs=100) as served:

        def by(name: str) -> dict[str, Any]:
            return {"headers": {"authorization": f"Bearer {tokens[name]}"}}

        async def seen(name: str) -> list[str]:
            rows = await listed(served.client, **by(name))
            answer = await served.client.post("/suggest/recent", json=ENTROPY, **by(name))
            assert sorted(row["text"] for row in answer.json()["inputs"]) == [row["text"] for row in rows]
            return [row["text"] for row in rows]

        for name, sent in (("one", ("a 1", "b 2")), ("two", ("b 2", "c 3")), ("only", ("d 4",))):
            await served.client.post("/predict", json={"inputs": texts(*sent)}, **by(name))
        assert [await seen(name) for name in ("one", "two")] == [["a 1", "b 2"], ["b 2", "c 3"]]
        assert await seen("admin") == ["a 1", "b 2", "c 3", "d 4"]
        for method in ("POST", "GET", "DELETE"):
            assert code(await served.client.request(method, "/suggest/recent", **by("only"))) == (403, "forbidden")
            assert code(await served.client.request(method, "/suggest/recent")) == (401, "unauthorized")
        assert (await served.client.delete("/suggest/recent", **by("one"))).json() == {"forgotten": 2}
        assert [await seen(name) for name in ("one", "two")] == [[], ["b 2", "c 3"]]
        assert (await served.client.delete("/suggest/recent", **by("admin"))).json() == {"forgotten": 3}
        assert [await seen(name) for name in ("two", "admin")] == [[], []]


async def test_each_artifact_has_its_own_and_they_go_with_it(tmp_path: Path) -> None:
    first, second = artifacts_in(tmp_path, "fake", "other")
    async with serve(first, second, artifacts_root=tmp_path, recent_inputs=100) as served:
        assert (await served.client.post("/artifacts/other/load")).status_code == 200
        await served.predict("a 1")
        await served.predict("b 2", artifact="other")
        of_other = {"params": {"artifact": "other"}}
        assert (await listed(served.client), await listed(served.client, **of_other)) == (texts("a 1"), texts("b 2"))
        named = (await served.client.post("/suggest/recent", json={"artifact": "other", **ENTROPY})).json()
        assert [row["text"] for row in named["inputs"]] == ["b 2"]
        assert (await served.client.post("/artifacts/other/unload")).status_code == 200
        assert len(served.state.recent) == 1
        assert (await served.client.post("/artifacts/other/load")).status_code == 200
        assert (await listed(served.client), await listed(served.client, **of_other)) == (texts("a 1"), [])
        # Answered by one that is gone by then.
        served.state.recent.add("sha256:gone", "one", texts("c 3"))
        assert len(served.state.recent) == 1


async def test_no_input_stays_longer_than_it_may() -> None:
    async with serve(recent_inputs=100, recent_inputs_s=0.2) as served:
        await served.predict("a 1")
        await served.until(lambda: len(served.state.recent) == 0)


def test_each_half_of_the_window_has_half_of_the_rows() -> None:
    kept = RecentInputs(rows=9, size_bytes=100_000, keep_s=60, by_caller=False)
    kept.follow(lambda: {"a"})
    kept.add("a", "one", texts(*(f"early {i}" for i in range(50))))
    kept.turn()
    assert len(kept) == 4
    kept.add("a", "two", texts(*(f"late {i}" for i in range(50))))
    lines = [json.loads(line)["text"].split()[0] for line in kept.lines("a", None)]
    assert (lines.count("early"), lines.count("late"), len(kept)) == (4, 5, 9)
    assert len(kept.lines("a", None, 3)) == 3
    kept.turn()
    assert {json.loads(line)["text"].split()[0] for line in kept.lines("a", None)} == {"late"}
    kept.turn()
    assert (len(kept), kept.size_bytes) == (0, 0)


async def test_many_at_once_over_a_real_server() -> None:
    """While 40 clients predict, others choose, list and forget: each is answered, and the bounds hold."""
    async with (
        serve(recent_inputs=50, recent_inputs_bytes=10_000) as served,
        on_uvicorn(served.app) as (_, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None) as client,
    ):

        async def predict(start: int) -> list[int]:
            bodies = [
                {"inputs": texts(*(f"number {i}" for i in range(n, n + 20)))} for n in range(start, start + 60, 20)
            ]
            return [(await client.post("/predict", json=body)).status_code for body in bodies]

        async def look() -> list[int]:
            sent = [await client.post("/suggest/recent", json=ENTROPY), await client.get("/suggest/recent")]
            return [answer.status_code for answer in (*sent, await client.delete("/suggest/recent"))]

        work = [*(predict(100 * i) for i in range(40)), *(look() for _ in range(10))]
        statuses = await asyncio.gather(*work)
        assert {status for several in statuses for status in several} == {200}
        await predict(0)
        rows = await listed(client)
        assert 0 < len(rows) <= 50
        assert len(rows) == len({row["text"] for row in rows})


async def test_a_client_takes_them_home() -> None:
    async with (
        serve(recent_inputs=100) as served,
        on_uvicorn(served.app) as (_, port),
        AsyncClient(f"http://127.0.0.1:{port}") as client,
    ):
        await client.predict(texts("a 2", "b 3"))
        (row,) = (await client.suggest_recent(count=1, method="entropy")).inputs
        inputs = await client.recent_inputs()
        assert {"text": row["text"]} in inputs
        assert sorted(one["text"] for one in inputs) == ["a 2", "b 3"]
        assert await client.forget_recent_inputs() == 2
        assert await client.recent_inputs() == ()
    async with (
        serve() as served,
        on_uvicorn(served.app) as (_, port),
        AsyncClient(f"http://127.0.0.1:{port}") as client,
    ):
        with pytest.raises(RequestRefusedError) as refused:
            await client.suggest_recent()
    assert refused.value.code == "recent_inputs_off"
