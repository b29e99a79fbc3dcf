"""Jobs in this process: uploads, progress, results, whose they are, and how many there may be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import FakePredictor, Served, serve
from starlette.datastructures import Headers

from laplora.prompts.templates import TEMPLATES
from service.errors import DeviceMemoryError, QueueFullError, StorageFullError
from service.jobs import pauses, shown
from service.jobs.records import Job
from service.security.callers import Caller

pytestmark = pytest.mark.anyio

JSONL = {"content-type": "application/jsonl"}


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "_LONGEST_S", 0.02)


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Return labelled inputs; each one's probability of ``negative`` names it."""
    return [
        {"text": f"row {(i * 7919 + 101) % 90_000 + 2}", "label": ("negative", "positive")[i % 3 == 0]}
        for i in range(first, first + count)
    ]


def lines(items: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


async def submit(served: Served, items: list[dict[str, Any]], **query: Any) -> dict[str, Any]:
    response = await served.client.post("/evaluate/jobs", content=lines(items), headers=JSONL, params=query)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/evaluate/jobs/{job['id']}"
    return job


async def get(served: Served, job_id: str) -> dict[str, Any]:
    response = await served.client.get(f"/evaluate/jobs/{job_id}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def ended(served: Served, job_id: str) -> dict[str, Any]:
    job = held(served, job_id)
    await served.until(lambda: job.finished)
    return await get(served, job_id)


def held(served: Served, job_id: str) -> Job:
    job: Job = served.state.jobs.job(job_id, None)
    return job


def folder(served: Served) -> Path:
    path: Path = served.state.settings.jobs_dir / "laplora-jobs"
    return path


def uploads(served: Served) -> list[str]:
    return sorted(p.name for pattern in ("*.jsonl", "*.part") for p in folder(served).glob(pattern))


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text
    return error


async def post(served: Served, body: Any, **headers: str) -> httpx.Response:
    return await served.client.post("/evaluate/jobs", content=body, headers=JSONL | headers)


async def test_a_job_says_what_evaluate_says() -> None:
    items = rows(150)
    options = {"bins": 7, "resamples": 20, "seed": 3}
    async with serve() as served:
        job = await submit(served, items, **options)
        assert (job["rows"], job["rows_done"], job["result"]) == (150, 0, None)
        assert job["options"] == {"truncate": False, "order_average": False, **options}
        done = await ended(served, job["id"])
        direct = await served.client.post("/evaluate", json={"inputs": items, "options": options})
        assert done["status"] == "done"
        assert {**done["result"], "timing_ms": None} == {**direct.json(), "timing_ms": None}
        assert done["partial"] == {
            name: {k: pytest.approx(found[k], abs=1e-12) for k in ("accuracy", "nll", "ece")}
            for name, found in direct.json()["methods"].items()
        }
        assert done["created_at"] <= done["started_at"] <= done["finished_at"]
        assert done["rows_per_second"] is None


async def test_orders_of_the_choices_are_averaged_as_evaluate_does() -> None:
    predictor = FakePredictor(template=TEMPLATES["multiple_choice"], labels=("A", "B", "C"))
    items = [
        {"question": f"{i + 10} ?", "choices": ["20", str(i + 3000), "7"][: 2 + i % 2], "label": "AB"[i % 2]}
        for i in range(30)
    ]
    options = {"order_average": True, "resamples": 10}
    async with serve(predictor, max_queue_rows=600) as served:
        job = await submit(served, items, **{**options, "order_average": "true"})
        done = await ended(served, job["id"])
        direct = await served.client.post("/evaluate", json={"inputs": items, "options": options})
        assert done["result"]["methods"] == direct.json()["methods"]
        assert "laplace_order_average" in done["result"]["methods"]


async def test_progress_and_partial_metrics_while_it_runs() -> None:
    predictor = FakePredictor()
    async with serve(predictor, batch_tokens=16) as served:
        predictor.most_rows = 10_000
        predictor.hold()
        job = await submit(served, rows(60))
        await served.until(predictor.entered.is_set)
        running = await get(served, job["id"])
        assert (running["status"], running["rows_done"], running["partial"]) == ("running", 0, None)
        metrics = (await served.client.get("/metrics")).text
        assert 'laplora_jobs{status="running"} 1.0' in metrics

        own = held(served, job["id"])
        seen: list[dict[str, Any]] = []
        predictor.released.set()
        while not own.finished:
            if own.rows_done and len(seen) < own.rows_done < 60:
                seen.append(await get(served, job["id"]))
            await asyncio.sleep(0)
        assert seen
        for found in seen:
            assert 0 < found["rows_done"] <= 60
            assert set(found["partial"]) == {"map", "laplace", "temperature"}
            assert all(0 <= m["accuracy"] <= 1 for m in found["partial"].values())
        metrics = (await served.client.get("/metrics")).text
        assert "laplora_job_rows_total 60.0" in metrics
        assert 'laplora_jobs{status="done"} 1.0' in metrics


async def test_prompts_leave_the_disk_with_the_jobs_end() -> None:
    secret = "unmistakable"
    predictor = FakePredictor()
    async with serve(predictor) as served:
        predictor.hold()
        job = await submit(served, [{"text": f"{secret} {i}", "label": "positive"} for i in range(40)], resamples=10)
        found = [p.name for p in folder(served).iterdir() if secret.encode() in p.read_bytes()]
        assert found == [f"{job['id']}.jsonl"]
        predictor.released.set()
        await ended(served, job["id"])
        await served.until(lambda: not list(folder(served).glob("*.jsonl")))
        assert not [p.name for p in folder(served).iterdir() if secret.encode() in p.read_bytes()]


async def test_the_folder_is_for_the_servers_user_alone() -> None:
    async with serve() as served:
        await submit(served, rows(3))
        for path in (folder(served), folder(served).parent):
            assert path.stat().st_mode & 0o777 == 0o700
        for path in folder(served).iterdir():
            assert path.stat().st_mode & 0o777 == 0o600, path.name


async def test_a_job_is_a_caller_of_the_queue_of_its_own() -> None:
    predictor = FakePredictor()
    async with serve(predictor) as served:
        predictor.hold()
        job = await submit(served, rows(5))
        await served.until(predictor.entered.is_set)
        assert {ticket.caller for ticket in served.state.engine._open} == {f"job:{job['id']}"}


async def test_a_quiet_stream_of_events_has_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "_HEARTBEAT_S", 0.01)
    predictor = FakePredictor()
    async with serve(predictor) as served:
        predictor.hold()
        job = held(served, (await submit(served, rows(3)))["id"])
        await served.until(lambda: job.status == "running")
        stream = shown.events(served.state.jobs, job, None, "ann")
        parts = [(await anext(stream)).decode() for _ in range(4)]
        assert parts[0].startswith("retry:")
        assert parts[1].startswith(f"id: {served.state.jobs.boot}-{job.changes}\ndata: ")
        assert parts[2:] == [": the job goes on\n\n"] * 2
        # What was read is not sent again.
        again = shown.events(served.state.jobs, job, parts[1].split("\n")[0][4:], "ann")
        assert [(await anext(again)).decode() for _ in range(2)] == [parts[0], parts[2]]
        predictor.released.set()


# What is wrong with an upload


@pytest.mark.parametrize(
    ("line", "code", "field"),
    [
        ('{"text": 1, "label": "positive"}', "invalid_input", "lines.3.text"),
        ('{"txet": "a", "label": "positive"}', "invalid_input", "lines.3"),
        ('{"text": "a"}', "invalid_request", "lines.3.label"),
        ('{"text": "a", "label": "good"}', "invalid_input", "lines.3.label"),
        ('{"text": "a", "label": 1}', "invalid_request", "lines.3.label"),
        ('{"text": "a", "label": "positive", "id": "x"}', "invalid_request", "lines.3.id"),
        ('{"text": "' + "a " * 65 + '", "label": "positive"}', "too_many_tokens", "lines.3"),
        ('{"text": NaN, "label": "positive"}', "invalid_json", "lines.3"),
        ('{"text": "\\ud800", "label": "positive"}', "invalid_json", "lines.3"),
        ('{"text": "a", "label": "positive"', "invalid_json", "lines.3"),
        ("[" * 5000, "invalid_json", "lines.3"),
        ("", "invalid_json", "lines.3"),
        ("3", "invalid_request", "lines.3"),
        ("null", "invalid_request", "lines.3"),
        ('{"a": 1, "a": 2}', "invalid_json", "lines.3"),
        ("\udcff", "invalid_json", "lines.3"),
    ],
)
async def test_a_bad_line_is_named_and_nothing_is_kept(line: str, code: str, field: str) -> None:
    good = lines([{"text": "private words", "label": "positive", "id": "x"}, {"text": "b", "label": "negative"}])
    body = good + line.encode("utf-8", "surrogateescape") + b"\n" + good
    async with serve() as served:
        response = await post(served, body)
        error = refused(response, 422, code)
        assert error["field"].startswith(field)
        assert "line 3" in error["message"]
        assert "private" not in response.text
        assert served.state.jobs.jobs_of(None) == []
        assert uploads(served) == []


async def test_lines_may_end_as_files_do() -> None:
    item = b'{"text": "row 5", "label": "positive"}'
    async with serve() as served:
        for body in (item, item + b"\n", item + b"\r\n", item + b"\n" + item, b" " + item + b"\r\n" + item + b"\r\n"):
            response = await post(served, body)
            assert response.status_code == 202
            assert response.json()["rows"] == body.count(b"}")


async def test_lines_are_found_however_the_bytes_come() -> None:
    body = lines(rows(20)) + '{"text": "ça 🎬", "label": "positive"}'.encode()

    async def in_parts(size: int) -> AsyncIterator[bytes]:
        for i in range(0, len(body), size):
            yield body[i : i + size]

    async with serve() as served:
        for size in (1, 7, 1000):
            response = await post(served, in_parts(size))
            assert response.json()["rows"] == 21
        jobs = [(await ended(served, job.id))["result"] for job in served.state.jobs.jobs_of(None)]
        assert jobs[0] == jobs[1] == jobs[2]


@pytest.mark.parametrize("kind", [None, "application/json", "text/plain", "application/jsonl; charset=latin-1"])
async def test_other_media_types_are_refused(kind: str | None) -> None:
    async with serve() as served:
        headers = {} if kind is None else {"content-type": kind}
        response = await served.client.post("/evaluate/jobs", content=lines(rows(1)), headers=headers)
        refused(response, 415, "unsupported_media_type")
        compressed = await post(served, lines(rows(1)), **{"content-encoding": "gzip"})
        refused(compressed, 415, "unsupported_media_type")
        for name in ("application/jsonl", "application/x-ndjson", "application/jsonl; charset=utf-8"):
            taken = await served.client.post("/evaluate/jobs", content=lines(rows(1)), headers={"content-type": name})
            assert taken.status_code == 202


def endless(item: bytes) -> Iterator[bytes]:
    while True:
        yield item


async def many(item: bytes) -> AsyncIterator[bytes]:
    for part in endless(item):
        yield part


async def test_limits_hold_without_a_content_length() -> None:
    line = lines(rows(1))
    async with serve(max_job_bytes=2048, max_job_rows=30, max_body_bytes=1024) as served:
        too_long = refused(await post(served, many(b" ")), 413, "body_too_large")
        assert (too_long["limit"], too_long["field"]) == (1024, "lines.1")
        too_many = refused(await post(served, many(line)), 413, "batch_too_large")
        assert (too_many["limit"], too_many["got"], too_many["field"]) == (30, 31, "lines")
        large = refused(
            await post(served, many(lines([{**rows(1)[0], "id": "x" * 200}]) + b"")), 422, "invalid_request"
        )
        assert large["field"] == "lines.2.id"
        wide = json.dumps({**rows(1)[0], "text": "1 " * 30}).encode() + b"\n"
        too_large = refused(await post(served, many(wide)), 413, "body_too_large")
        assert too_large["limit"] == 2048
        assert too_large["got"] > 2048
        announced = refused(await post(served, b" " * 4096), 413, "body_too_large")
        assert (announced["limit"], announced["got"]) == (2048, 4096)
        assert uploads(served) == []


async def test_an_empty_upload_is_refused() -> None:
    async with serve() as served:
        for body in (b"", b"  "):
            assert refused(await post(served, body), 422, "invalid_request")["field"] == "lines"
        assert refused(await post(served, b"\n"), 422, "invalid_json")["field"] == "lines.1"


@pytest.mark.parametrize(
    ("query", "field"),
    [("bins=0", "query.bins"), ("bins=x", "query.bins"), ("resamples=5", "query.resamples"), ("a=b", "query.a")],
)
async def test_bad_options_are_refused_in_the_one_shape(query: str, field: str) -> None:
    async with serve() as served:
        response = await served.client.post(f"/evaluate/jobs?{query}", content=lines(rows(1)), headers=JSONL)
        assert refused(response, 422, "invalid_request")["field"] == field


async def test_unknown_artifacts_are_refused() -> None:
    async with serve() as served:
        response = await served.client.post("/evaluate/jobs?artifact=b", content=lines(rows(1)), headers=JSONL)
        refused(response, 404, "artifact_not_found")


async def test_an_upload_that_takes_too_long_is_given_up() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield lines(rows(1))
        await asyncio.Event().wait()

    async with serve(job_upload_timeout_s=0.2) as served:
        # The client would go on sending for ever: what is asked here is the server's side alone.
        sent = asyncio.ensure_future(post(served, slow()))
        await served.until(lambda: bool(served.state.jobs._uploads))
        await served.until(lambda: not served.state.jobs._uploads)
        sent.cancel()
        await asyncio.gather(sent, return_exceptions=True)
        assert uploads(served) == []
        assert served.state.jobs.jobs_of(None) == []


# The same key


async def test_the_same_key_gives_the_same_job() -> None:
    async with serve() as served:
        first = await post(served, lines(rows(4)), **{"idempotency-key": "k-1"})
        again = await post(served, lines(rows(4)), **{"idempotency-key": "k-1"})
        other = await post(served, lines(rows(4)), **{"idempotency-key": "k-2"})
        assert first.json()["id"] == again.json()["id"] != other.json()["id"]
        assert again.status_code == 202
        assert again.headers["location"] == first.headers["location"]
        options = await served.client.post(
            "/evaluate/jobs?bins=3", content=lines(rows(4)), headers=JSONL | {"idempotency-key": "k-1"}
        )
        refused(options, 409, "idempotency_conflict")
        for bad in ("", "a b", "x" * 256):
            response = await post(served, lines(rows(1)), **{"idempotency-key": bad})
            refused(response, 422, "invalid_request")
        assert len(served.state.jobs.jobs_of(None)) == 2


async def test_the_same_key_twice_at_once_makes_one_job() -> None:
    going_on = asyncio.Event()

    async def held_up() -> AsyncIterator[bytes]:
        yield lines(rows(1))
        await going_on.wait()
        yield lines(rows(1))

    key = {"idempotency-key": "k"}
    async with serve() as served:
        first = asyncio.ensure_future(post(served, held_up(), **key))
        await served.until(lambda: bool(served.state.jobs._uploads))
        refused(await post(served, lines(rows(2)), **key), 409, "idempotency_conflict")
        going_on.set()
        assert (await first).json()["rows"] == 2
        assert (await post(served, lines(rows(2)), **key)).json()["id"] == (await first).json()["id"]


async def test_a_refused_upload_leaves_its_key_free() -> None:
    async with serve() as served:
        refused(await post(served, b"{}", **{"idempotency-key": "k"}), 422, "invalid_request")
        assert (await post(served, lines(rows(1)), **{"idempotency-key": "k"})).status_code == 202


# Whose they are, and how many


class Named:
    """Puts a caller before the application, as API keys do."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name = Headers(scope=scope).get("x-caller", "")
        scopes = frozenset({"evaluate", "admin"} if name == "root" else {"evaluate"})
        scope.setdefault("state", {})["caller"] = Caller(name, scopes)  # type: ignore[arg-type]
        await self.app(scope, receive, send)


async def test_jobs_are_their_owners() -> None:
    async with serve() as served:
        transport = httpx.ASGITransport(app=Named(served.app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=None) as client:

            async def ask(method: str, path: str, caller: str, **kw: Any) -> httpx.Response:
                return await client.request(method, path, headers=JSONL | {"x-caller": caller}, **kw)

            job = (await ask("POST", "/evaluate/jobs", "ann", content=lines(rows(3)))).json()
            assert job["owner"] == "ann"
            path = f"/evaluate/jobs/{job['id']}"
            await ended(served, job["id"])
            for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/events")):
                refused(await ask(method, where, "bob"), 404, "job_not_found")
            assert (await ask("GET", "/evaluate/jobs", "bob")).json() == {"jobs": []}
            for caller in ("ann", "root"):
                assert [j["id"] for j in (await ask("GET", "/evaluate/jobs", caller)).json()["jobs"]] == [job["id"]]
                assert (await ask("GET", path, caller)).json()["status"] == "done"
            # Another caller's key is another key.
            for caller in ("ann", "bob"):
                response = await client.post(
                    "/evaluate/jobs",
                    content=lines(rows(3)),
                    headers=JSONL | {"x-caller": caller, "idempotency-key": "k"},
                )
                assert response.json()["owner"] == caller
            assert (await ask("DELETE", path, "ann")).json()["outcome"] == "removed"
            refused(await ask("GET", path, "ann"), 404, "job_not_found")


@pytest.mark.parametrize("job_id", ["x", "..%2f..", "%00", "a" * 5000, "ü"])
async def test_unknown_ids(job_id: str) -> None:
    async with serve() as served:
        for method, suffix in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
            response = await served.client.request(method, f"/evaluate/jobs/{job_id}{suffix}")
            assert response.status_code == 404


async def test_room_for_jobs_is_bounded() -> None:
    predictor = FakePredictor()
    async with serve(predictor, max_jobs=3, max_jobs_per_caller=2) as served:
        predictor.hold()
        first, second = await submit(served, rows(1)), await submit(served, rows(1))
        response = await post(served, lines(rows(1)))
        error = refused(response, 429, "too_many_jobs")
        assert (error["limit"], error["got"]) == (2, 3)
        assert "retry-after" in response.headers
        for job in (first, second):
            own = held(served, job["id"])
            assert own.hold is not None
            own.owner = own.hold.owner = "another"
        third = await submit(served, rows(1))
        assert refused(await post(served, lines(rows(1))), 429, "too_many_jobs")["limit"] == 3
        predictor.released.set()
        for job in (first, second, third):
            await ended(served, job["id"])
        # Who has most loses the oldest.
        fourth = await submit(served, rows(1))
        kept = [job.id for job in served.state.jobs.jobs_of(None)]
        assert kept == [fourth["id"], third["id"], second["id"]]


async def test_finished_jobs_are_kept_for_a_while() -> None:
    async with serve(job_keep_s=1000) as served:
        job, other = await submit(served, rows(1)), await submit(served, rows(1))
        for one in (job, other):
            await ended(served, one["id"])
        own = held(served, job["id"])
        assert own.finished_at is not None
        own.finished_at -= 1001
        await served.state.jobs._remove_old()
        assert [one.id for one in served.state.jobs.jobs_of(None)] == [other["id"]]


# Cancelling, waiting, failing


async def test_a_cancelled_job_frees_the_queue_at_once() -> None:
    predictor = FakePredictor()
    async with serve(predictor, batch_tokens=40) as served:
        predictor.hold()
        job = await submit(served, rows(200))
        await served.until(lambda: predictor.entered.is_set() and served.state.engine.queued_rows > 0)
        answer = await served.client.delete(f"/evaluate/jobs/{job['id']}")
        assert answer.json() == {"id": job["id"], "outcome": "cancelled"}
        assert served.state.engine.queued_rows == 0
        assert not list(folder(served).glob("*.jsonl"))
        found = await get(served, job["id"])
        assert (found["status"], found["rows_done"], found["result"]) == ("cancelled", 0, None)
        assert found["finished_at"]
        predictor.released.set()
        assert (await served.predict("row 9")).status_code == 200
        assert sum(len(batch) for _, batch in predictor.batches) < 20
        assert (await served.client.delete(f"/evaluate/jobs/{job['id']}")).json()["outcome"] == "removed"
        refused(await served.client.delete(f"/evaluate/jobs/{job['id']}"), 404, "job_not_found")


async def test_a_queued_job_can_be_cancelled() -> None:
    predictor = FakePredictor()
    async with serve(predictor) as served:
        predictor.hold()
        first, second = await submit(served, rows(2)), await submit(served, rows(2))
        await served.client.delete(f"/evaluate/jobs/{second['id']}")
        predictor.released.set()
        assert (await ended(served, first["id"]))["status"] == "done"
        assert (await get(served, second["id"]))["status"] == "cancelled"


@pytest.mark.parametrize("error", [QueueFullError("full"), DeviceMemoryError("an input alone does not fit")])
async def test_what_passes_is_waited_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = FakePredictor()
    async with serve(predictor) as served:
        refusals, submit_rows, runner, go_on = 0, served.state.engine.submit, served.state.jobs._runner, asyncio.Event()

        def full(*args: Any, **kw: Any) -> Any:
            nonlocal refusals
            refusals += 1
            if refusals <= 3 and kw["caller"].startswith("job:"):
                raise error
            return submit_rows(*args, **kw)

        def next_s(self: pauses.Pauses) -> float:
            self.tried += 1
            return 0.0 if go_on.is_set() else 3600.0

        monkeypatch.setattr(served.state.engine, "submit", full)
        monkeypatch.setattr(pauses.Pauses, "next_s", next_s)
        job = await submit(served, rows(40))
        await served.until(lambda: held(served, job["id"]).status == "paused")
        paused = await get(served, job["id"])
        assert (
            paused["paused"]["code"] == {QueueFullError: "queue_full", DeviceMemoryError: "device_memory"}[type(error)]
        )
        assert paused["paused"]["message"]
        assert (await served.predict("row 1")).status_code == 200
        go_on.set()
        runner._runs[job["id"]].not_before = 0.0
        runner.wake()
        done = await ended(served, job["id"])
        assert (done["status"], done["paused"], done["result"]["rows"]) == ("done", None, 40)


async def test_chunks_shrink_until_the_queue_takes_them() -> None:
    async with serve(max_queue_rows=8, max_inputs=4) as served:
        job = await submit(served, rows(30))
        assert (await ended(served, job["id"]))["result"]["rows"] == 30


async def test_jobs_wait_for_the_artifact() -> None:
    """A job that another start of the server left is there before the artifact is."""
    predictor = FakePredictor()
    async with serve(predictor) as served:
        predictor.hold()
        job = await submit(served, rows(5))
        path = served.state.settings.jobs_dir
    loading = FakePredictor()
    loading.hold()
    async with serve(loading, wait=False, jobs_dir=path) as served:
        await served.until(lambda: held(served, job["id"]).paused is not None)
        paused = await get(served, job["id"])
        assert (paused["status"], paused["paused"]["code"]) == ("paused", "not_ready")
        loading.released.set()
        assert (await ended(served, job["id"]))["status"] == "done"


@pytest.mark.parametrize("name", ["fake", "other"])
async def test_a_job_goes_on_with_its_own_artifact_only(name: str) -> None:
    predictor = FakePredictor()
    async with serve(predictor, batch_tokens=40) as served:
        predictor.hold()
        job = await submit(served, rows(5))
        path = served.state.settings.jobs_dir
    another = FakePredictor(name)
    another.artifact.digest = "sha256:another"
    async with serve(another, artifact=name, jobs_dir=path) as served:
        failed = await ended(served, job["id"])
        assert (failed["status"], failed["error"]["code"]) == ("failed", "artifact_changed")
        assert "fake" in failed["error"]["message"]
        await served.until(lambda: not uploads(served))


async def test_a_job_waits_for_its_artifact_to_be_loaded_and_holds_up_no_other(tmp_path: Path) -> None:
    for name in ("fake", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    first, second = FakePredictor(path=tmp_path / "fake"), FakePredictor("other", path=tmp_path / "other")
    async with serve(first, second, artifacts_root=tmp_path) as served:
        first.hold()
        job = await submit(served, rows(5))
        path = served.state.settings.jobs_dir
    first.released.set()
    async with serve(first, second, artifact="other", artifacts_root=tmp_path, jobs_dir=path) as served:
        await served.until(lambda: held(served, job["id"]).paused is not None)
        assert (await get(served, job["id"]))["paused"]["code"] == "artifact_not_loaded"
        other = await submit(served, rows(5), artifact="other")
        assert (await ended(served, other["id"]))["status"] == "done"
        assert (await served.client.post("/artifacts/fake/load")).status_code == 200
        assert (await ended(served, job["id"]))["result"]["artifact"]["name"] == "fake"


async def test_a_full_disk_pauses_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real disk is in test_jobs_process.py; here, at every step that writes."""
    async with serve() as served:
        store, full = served.state.jobs.store, True
        for name in ("add_rows", "end"):
            write = getattr(store, name)

            def refuse(*args: Any, write: Any = write, **kw: Any) -> Any:
                if full:
                    raise StorageFullError("no room")
                return write(*args, **kw)

            monkeypatch.setattr(store, name, refuse)
        job, other = await submit(served, rows(5)), await submit(served, rows(5))
        await served.until(lambda: held(served, job["id"]).paused is not None)
        assert (await get(served, job["id"]))["paused"]["code"] == "storage_full"
        response = await served.client.delete(f"/evaluate/jobs/{other['id']}")
        refused(response, 503, "storage_full")
        assert "retry-after" in response.headers
        full = False
        assert (await ended(served, job["id"]))["status"] == "done"
        assert (await served.client.delete(f"/evaluate/jobs/{other['id']}")).json()["outcome"] == "cancelled"


async def test_without_a_folder_all_but_jobs_is_served(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with serve(jobs_dir=tmp_path / "file" / "jobs") as served:
        for method, path in (("GET", ""), ("POST", ""), ("GET", "/x"), ("DELETE", "/x"), ("GET", "/x/events")):
            response = await served.client.request(method, f"/evaluate/jobs{path}", content=b"{}", headers=JSONL)
            error = refused(response, 503, "jobs_unavailable")
            assert "retry-after" in response.headers
            assert str(tmp_path) not in error["message"]
        assert (await served.predict("a")).status_code == 200


async def test_one_server_at_a_time_has_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.board._KEEPING_S", 0.02)
    async with serve() as first:
        path = first.state.settings.jobs_dir
        job = await submit(first, rows(2))
        await ended(first, job["id"])
        async with serve(jobs_dir=path) as second:
            error = refused(await second.client.get("/evaluate/jobs"), 503, "jobs_unavailable")
            assert "another server process" in error["message"]
            await first.state.jobs.close()
            # As the first one leaves, the second takes over.
            await second.until(lambda: second.state.jobs._why_closed is None)
            assert [j.id for j in second.state.jobs.jobs_of(None)] == [job["id"]]


async def test_a_damaged_folder_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"no database" * 1000)
    async with serve(jobs_dir=tmp_path) as served:
        refused(await served.client.get("/evaluate/jobs"), 503, "jobs_unavailable")
