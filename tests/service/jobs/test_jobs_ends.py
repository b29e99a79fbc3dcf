"""How jobs end: cancelled, removed, with rows that have no answer, or because their artifact never came."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import FakePredictor, Served, serve
from test_jobs import JSONL, Named, ended, folder, get, held, lines, post, refused, rows, submit, uploads

from service.errors import StorageFullError
from service.jobs import pauses

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "_LONGEST_S", 0.02)


async def cancel(served: Served, job_id: str) -> dict[str, Any]:
    response = await served.client.post(f"/evaluate/jobs/{job_id}/cancel")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def delete(served: Served, job_id: str) -> str:
    response = await served.client.delete(f"/evaluate/jobs/{job_id}")
    assert response.status_code == 200, response.text
    return str(response.json()["outcome"])


# Cancelling and removing


async def test_cancel_stops_a_job_and_keeps_it_listed() -> None:
    predictor = FakePredictor()
    async with serve(predictor, batch_tokens=40) as served:
        predictor.hold()
        job = await submit(served, rows(200))
        await served.until(lambda: predictor.entered.is_set() and served.state.engine.queued_rows > 0)
        found = await cancel(served, job["id"])
        assert (found["status"], found["result"], found["bad_rows"]) == ("cancelled", None, None)
        assert served.state.engine.queued_rows == 0
        assert uploads(served) == []
        assert served.state.jobs.quota.held_bytes == 0
        # Again: nothing happens. It is removed by DELETE alone.
        assert await cancel(served, job["id"]) == found
        assert await delete(served, job["id"]) == "removed"
        refused(await served.client.post(f"/evaluate/jobs/{job['id']}/cancel"), 404, "job_not_found")


@pytest.mark.parametrize("kind", ["done", "failed"])
async def test_a_late_cancel_changes_nothing(kind: str) -> None:
    predictor = FakePredictor()
    async with serve(predictor) as served:
        predictor.nan = kind == "failed"
        job = await submit(served, rows(5), resamples=10)
        await served.until(lambda: held(served, job["id"]).finished)
        assert (await cancel(served, job["id"]))["status"] == kind
        found = await get(served, job["id"])
        assert found["status"] == kind
        assert (found["result"] is not None) == (kind == "done")


async def test_a_cancel_while_the_end_is_written_loses_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as served:
        store, begun = served.state.jobs.store, asyncio.Event()
        end, loop = store.end, asyncio.get_running_loop()

        def slow(*args: Any, **kw: Any) -> bool:
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result()
            return bool(end(*args, **kw))

        monkeypatch.setattr(store, "end", slow)
        job = await submit(served, rows(5), resamples=10)
        await begun.wait()
        assert (await cancel(served, job["id"]))["status"] == "done"
        assert (await get(served, job["id"]))["result"]["rows"] == 5
        other = await submit(served, rows(5), resamples=10)
        begun.clear()
        await begun.wait()
        # A client of before there was a cancel: it gets no result taken away, and is not told that it cancelled.
        assert await delete(served, other["id"]) == "kept"
        assert (await get(served, other["id"]))["result"]["rows"] == 5


async def test_delete_removes_only_what_the_caller_was_told_has_ended() -> None:
    """DELETE cancelled jobs before there was a cancel: one that comes late takes no result away."""
    async with serve() as served:
        transport = httpx.ASGITransport(app=Named(served.app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=None) as client:

            async def ask(method: str, path: str, caller: str, **kw: Any) -> Any:
                response = await client.request(method, path, headers=JSONL | {"x-caller": caller}, **kw)
                assert response.status_code < 300, response.text
                return response.json()

            async def job_of_ann() -> str:
                job = await ask("POST", "/evaluate/jobs?resamples=10", "ann", content=lines(rows(3)))
                await served.until(lambda: held(served, job["id"]).finished)
                return f"/evaluate/jobs/{job['id']}"

            unread = await job_of_ann()
            # Another caller's look tells ann nothing.
            assert (await ask("GET", unread, "root"))["status"] == "done"
            assert (await ask("DELETE", unread, "ann"))["outcome"] == "kept"
            assert (await ask("GET", unread, "ann"))["result"]["rows"] == 3
            assert (await ask("DELETE", unread, "ann"))["outcome"] == "removed"

            async def read_events(path: str) -> None:
                response = await client.get(f"{path}/events", headers={"x-caller": "ann"})
                assert '"done"' in response.text

            async def read_list(path: str) -> None:
                await ask("GET", "/evaluate/jobs", "ann")

            async def read_cancel(path: str) -> None:
                await ask("POST", f"{path}/cancel", "ann")

            async def read_kept(path: str) -> None:
                assert (await ask("DELETE", path, "ann"))["outcome"] == "kept"

            for read in (read_events, read_list, read_cancel, read_kept):
                path = await job_of_ann()
                await read(path)
                assert (await ask("DELETE", path, "ann"))["outcome"] == "removed", read.__name__


async def test_a_cancel_that_cannot_be_written_down_yet_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.board._KEEPING_S", 0.02)
    predictor = FakePredictor()
    async with serve(predictor) as served:
        predictor.hold()
        job = await submit(served, rows(5))
        store, full = served.state.jobs.store, True
        end = store.end

        def refuse(*args: Any, **kw: Any) -> Any:
            if full:
                raise StorageFullError("no room")
            return end(*args, **kw)

        monkeypatch.setattr(store, "end", refuse)
        refused(await served.client.post(f"/evaluate/jobs/{job['id']}/cancel"), 503, "storage_full")
        full = False
        await served.until(lambda: held(served, job["id"]).status == "cancelled")


# Rows without an answer


def poisoned(*numbers: int, count: int = 60) -> list[dict[str, Any]]:
    """Return labelled inputs, of which these, from 0, hold a token of their own."""
    items = rows(count)
    for number in numbers:
        items[number] = {"text": f"row {90_500 + number}", "label": "positive"}
    return items


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("CUDA out of memory"), "device_memory"),
        (ValueError("secret words"), "internal_error"),
    ],
)
async def test_a_row_that_cannot_be_scored_is_left_out_and_named(error: Exception, code: str) -> None:
    predictor = FakePredictor()
    items = poisoned(0, 17, 41)
    async with serve(predictor, batch_tokens=64) as served:
        for number in (0, 17, 41):
            predictor.poison[90_500 + number] = error
        job = await submit(served, items, resamples=10)
        done = await ended(served, job["id"])
        assert (done["status"], done["rows_done"], done["rows_bad"], done["error"]) == ("done", 60, 3, None)
        assert done["bad_rows"] == [{"line": number + 1, "code": code} for number in (0, 17, 41)]
        good = [item for i, item in enumerate(items) if i not in (0, 17, 41)]
        direct = await served.client.post("/evaluate", json={"inputs": good, "options": {"resamples": 10}})
        assert done["result"]["rows"] == 57
        assert done["result"]["methods"] == direct.json()["methods"]
        assert "secret" not in json.dumps(done)
        (listed,) = (await served.client.get("/evaluate/jobs")).json()["jobs"]
        assert (listed["rows_bad"], listed["bad_rows"]) == (3, None)
        metrics = (await served.client.get("/metrics")).text
        assert "laplora_job_rows_total 57.0" in metrics
        assert "laplora_job_bad_rows_total 3.0" in metrics


async def test_more_than_may_be_fail_the_job_with_the_counts() -> None:
    predictor = FakePredictor()
    async with serve(predictor, batch_tokens=64, max_job_bad_rows=2) as served:
        for number in (3, 20, 45):
            predictor.poison[90_500 + number] = RuntimeError("CUDA out of memory")
        failed = await ended(served, (await submit(served, poisoned(3, 20, 45), resamples=10))["id"])
        assert (failed["status"], failed["rows_bad"], failed["result"]) == ("failed", 3, None)
        error = failed["error"]
        assert (error["code"], error["limit"], error["got"]) == ("too_many_bad_rows", 2, 3)
        assert "device_memory: 3" in error["message"]
        assert error["field"] == "lines.46"
        assert failed["bad_rows"] == [{"line": n + 1, "code": "device_memory"} for n in (3, 20, 45)]
        # The next one is not held up by it.
        assert (await ended(served, (await submit(served, rows(3), resamples=10))["id"]))["status"] == "done"


async def test_none_may_be_where_the_limit_is_0() -> None:
    predictor = FakePredictor()
    async with serve(predictor, max_job_bad_rows=0) as served:
        predictor.poison[90_507] = ValueError("x")
        failed = await ended(served, (await submit(served, poisoned(7)))["id"])
        assert (failed["error"]["code"], failed["error"]["field"]) == ("too_many_bad_rows", "lines.8")
        assert failed["bad_rows"] == [{"line": 8, "code": "internal_error"}]


async def test_a_job_without_one_row_that_can_be_scored_fails() -> None:
    predictor = FakePredictor()
    async with serve(predictor, batch_tokens=8) as served:
        predictor.nan = True
        failed = await ended(served, (await submit(served, rows(3)))["id"])
        assert (failed["status"], failed["rows_done"], failed["partial"]) == ("failed", 3, None)
        assert (failed["error"]["code"], failed["error"]["field"]) == ("too_many_bad_rows", "lines.1")
        assert "unscorable_input: 3" in failed["error"]["message"]
        assert [row["line"] for row in failed["bad_rows"]] == [1, 2, 3]


async def test_bad_rows_go_with_the_removed_job() -> None:
    predictor = FakePredictor()
    async with serve(predictor) as served:
        predictor.poison[90_507] = ValueError("x")
        job = await submit(served, poisoned(7), resamples=10)
        await ended(served, job["id"])
        assert await delete(served, job["id"]) == "removed"
        path = folder(served) / "jobs.sqlite"
        await served.until(lambda: served.state.jobs._sweeper.done())
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM bad_rows").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM rows").fetchone() == (0,)


# An artifact that never comes


async def test_a_job_whose_artifact_never_comes_back_gives_its_place_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.runner._ABSENCE_STEP_S", 0.02)
    for name in ("fake", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    first, second = FakePredictor(path=tmp_path / "fake"), FakePredictor("other", path=tmp_path / "other")
    common: dict[str, Any] = {"artifacts_root": tmp_path, "max_jobs_per_caller": 1}
    async with serve(first, second, **common) as served:
        first.hold()
        job = await submit(served, rows(5))
        path = served.state.settings.jobs_dir
    first.released.set()
    common |= {"artifact": "other", "jobs_dir": path}
    async with serve(first, second, **common, job_wait_s=1000) as served:
        waiting = held(served, job["id"])
        await served.until(lambda: waiting.paused is not None and waiting.absent_s > 0.1)
        refused(await post(served, lines(rows(1))), 429, "too_many_jobs")
    # A restart does not begin anew: what it waited before counts, and the time between does not.
    async with serve(first, second, **common, job_wait_s=0.1) as served:
        failed = await ended(served, job["id"])
        assert (failed["status"], failed["error"]["code"]) == ("failed", "artifact_not_loaded")
        assert "'fake' was not loaded for job_wait_s (0.1 s)" in failed["error"]["message"]
        assert uploads(served) == []
        assert served.state.jobs.quota.held_bytes == 0
        assert (await post(served, lines(rows(1)))).status_code == 202


async def test_an_artifact_that_comes_back_in_time_ends_the_wait(tmp_path: Path) -> None:
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
        waiting = held(served, job["id"])
        await served.until(lambda: waiting.absent_s > 0.05)
        assert (await served.client.post("/artifacts/fake/load")).status_code == 200
        assert (await ended(served, job["id"]))["status"] == "done"
        assert waiting.absent_s == 0
        assert [found.absent_s for found in served.state.jobs.store.jobs()] == [0]


async def test_a_cancel_passes_where_no_other_request_does() -> None:
    predictor = FakePredictor()
    async with serve(predictor, max_requests=1) as served:
        predictor.hold()
        job = await submit(served, rows(5))
        asked = asyncio.ensure_future(served.predict("row 1"))
        await served.until(lambda: served.state.engine.open_tickets >= 2)
        assert (await served.predict("row 2")).status_code == 429
        assert (await cancel(served, job["id"]))["status"] == "cancelled"
        predictor.released.set()
        assert (await asked).status_code == 200
