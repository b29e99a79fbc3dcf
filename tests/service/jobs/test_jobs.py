"""Jobs in this process: uploads, progress, results, whose they are, and how many there may be."""

from __future__ import annotations

import asyncio
import gzip
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from job_calls import ServedJobs, callers, lines, refused, rows, serve, stopped_job
from serving import FakePredictor

from laplora.prompts.templates import TEMPLATES
from service.errors import DeviceMemoryError, QueueFullError, ShelfFullError, StorageFullError

pytestmark = pytest.mark.anyio


async def test_a_job_shows_how_far_it_is_and_says_what_evaluate_says() -> None:
    items, options = rows(150), {"bins": 7, "resamples": 20, "seed": 3}
    async with serve(batch_tokens=16) as served:
        served.predictor.unfamiliar = {int(items[i]["text"].split()[1]) for i in (3, 77, 149)}
        served.predictor.hold()
        job_id = await served.submit(items, **options)
        await served.until(served.predictor.entered.is_set)
        assert {plan.caller for plan in served.state.backend.queue.entries} == {f"job:{job_id}"}
        running, job = await served.get(job_id), served.held(job_id)
        assert (running["status"], running["rows"], running["rows_done"]) == ("running", 150, 0)
        assert (running["partial"], running["result"]) == (None, None)
        assert running["options"] == {"truncate": False, **options}
        scraped = (await served.client.get("/metrics")).text.splitlines()
        assert served.state.backend.queue.rows > 0
        # A job's rows wait while requests keep the device busy: no reason to wake anybody.
        assert {'laplora_jobs{status="running",store="own"} 1.0', "laplora_queue_oldest_age_seconds 0.0"} <= set(
            scraped
        )
        assert await served.answers(job_id) == []

        served.predictor.released.set()
        while job.rows_per_second is None:
            await asyncio.sleep(0)
        running, some = await served.get(job_id), await served.answers(job_id)
        assert 0 < running["rows_done"] < 150
        assert set(running["partial"]) == {"map", "laplace", "temperature"}
        assert running["rows_per_second"] > 0
        assert [one["line"] for one in some] == list(range(1, len(some) + 1))

        done = await served.ended(job_id)
        assert (done["status"], done["rows_per_second"], done["seconds_left"]) == ("done", None, None)
        assert done["created_at"] <= done["started_at"] <= done["finished_at"]
        assert (await served.answers(job_id))[: len(some)] == some
        metrics = (await served.client.get("/metrics")).text
        assert {"laplora_job_rows_total 150.0", 'laplora_jobs{status="done",store="own"} 1.0'} <= set(
            metrics.splitlines()
        )
        direct = (await served.client.post("/evaluate", json={"inputs": items, "options": options})).json()
        del direct["timing_ms"], direct["accepted"]
        assert direct["unfamiliar"] == 3 / 150
        assert done["result"] == direct
        for name, found in direct["methods"].items():
            assert done["partial"][name] == pytest.approx({k: found[k] for k in ("accuracy", "nll", "ece")}, abs=1e-12)
    job.status, job.rows_done = "running", 50
    job.pace.clear()
    job.pace.extend([(100.0, 40), (105.0, 50)])
    assert (job.rows_per_second, job.seconds_left) == (2.0, 50.0)


async def test_rows_without_a_label_are_answered_and_those_with_one_measured(served: ServedJobs) -> None:
    """All of a file, and some: null is none. Of no label nothing is measured, so one predictive is asked for."""
    items, predict = rows(40), served.predictor.predict
    asked: list[Any] = []
    served.predictor.unfamiliar = {int(items[3]["text"].split()[1])}
    served.predictor.predict = lambda *args, **kw: asked.append(kw["also"]) or predict(*args, **kw)  # type: ignore[func-returns-value]
    bare = [{"text": item["text"], **({"label": None} if i % 2 else {})} for i, item in enumerate(items)]
    job_id = await served.submit(bare)
    done, answers = await served.ended(job_id), await served.answers(job_id)
    assert (done["status"], done["rows"], done["rows_labelled"], done["partial"]) == ("done", 40, 0, None)
    assert (done["result"]["rows"], done["result"]["methods"], done["result"]["unfamiliar"]) == (0, {}, 1 / 40)
    assert set(asked) == {()}
    assert [one["input"] for one in answers] == bare
    for number in (0, 3):
        direct = (await served.predict(items[number]["text"])).json()["predictions"][0]
        assert answers[number]["answer"].items() <= direct.items()
    found = [one["answer"] for one in answers]
    assert done["answered"] == {
        "rows": 40,
        "decisions": {name: sum(one["decision"] == name for one in found) for name in ("accept", "review")},
        "set_sizes": {str(n): count for n, count in Counter(len(one["prediction_set"]) for one in found).items()},
        "unfamiliar": 1 / 40,
        "uncertainty": {
            name: pytest.approx(sum(one["uncertainty"][name] for one in found) / 40)
            for name in ("total", "aleatoric", "epistemic")
        },
    }
    refused(await served.client.get(f"/evaluate/jobs/{job_id}/report"), 404, "report_not_found")

    mixed = [item if i % 4 == 0 else bare[i] for i, item in enumerate(items)]
    some = await served.ended(await served.submit(mixed))
    assert (some["rows"], some["rows_labelled"], some["answered"]) == (40, 10, done["answered"])
    assert (some["result"]["rows"], some["result"]["unfamiliar"]) == (10, 1 / 40)
    assert some["result"]["methods"] == await served.methods(mixed[::4])


async def test_questions_with_choices_are_measured_as_evaluate_does() -> None:
    predictor = FakePredictor(template=TEMPLATES["multiple_choice"], labels=("A", "B", "C"))
    items = [
        {"question": f"{i + 10} ?", "choices": ["20", f"words {i + 3000}", "7"][: 2 + i % 2], "label": "AB"[i % 2]}
        for i in range(30)
    ]
    predictor.artifact.manifest.familiarity = None  # it flags no row, which is not that all are familiar
    async with serve(predictor, max_queue_rows=600) as served:
        job_id = await served.submit(items)
        done = await served.ended(job_id)
        assert done["result"]["methods"] == await served.methods(items)
        assert done["result"]["unfamiliar"] is None
        # An answer names the text of a choice, no part of which is in the database.
        for item, one in zip(items, await served.answers(job_id, detail="full"), strict=True):
            assert one["answer"]["label_text"] == item["choices"]["ABC".index(one["answer"]["label"])]
        disk, number = served.state.jobs.ledger.disk, served.held(job_id).number
        kept = [one.answer for one in await disk.in_database(disk.tables.reads.answers, number, (0, 30))]
        assert len(kept) == 30
        assert not any("words" in one or "label_text" in one for one in kept)


async def test_prompts_that_are_not_kept_leave_the_disk_with_the_jobs_end(served: ServedJobs) -> None:
    def with_prompts() -> list[str]:
        return [p.name for p in served.folder().iterdir() if b"unmistakable" in p.read_bytes()]

    served.predictor.hold()
    items = [{"text": f"unmistakable {i}", "label": "positive"} for i in range(40)]
    job_id = await served.submit(items, keep_rows="false")
    assert with_prompts() == [f"{job_id}.jsonl"]
    assert {path.stat().st_mode & 0o777 for path in (served.folder(), served.folder().parent)} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in served.folder().iterdir()} == {0o600}
    served.predictor.released.set()
    await served.ended(job_id)
    await served.until(lambda: not served.uploads())
    assert with_prompts() == []
    refused(await served.client.get(f"/evaluate/jobs/{job_id}/results"), 404, "rows_not_kept")


async def test_the_same_key_gives_the_same_job(served: ServedJobs) -> None:
    """Also while its first upload still comes."""
    going_on = asyncio.Event()

    async def held_up() -> AsyncIterator[bytes]:
        yield lines(rows(1))
        await going_on.wait()
        yield lines(rows(3, first=1))

    async def send(key: str, body: Any = lines(rows(4)), **query: Any) -> Any:  # noqa: B008
        return await served.post(body, query, **{"idempotency-key": key})

    refused(await send("k-1", b"{}"), 422, "invalid_input")
    sending = asyncio.ensure_future(send("k-1", held_up()))
    await served.until(lambda: bool(served.state.jobs.taking._uploads))
    refused(await send("k-1"), 409, "idempotency_conflict")
    going_on.set()
    first, again, other = await sending, await send("k-1"), await send("k-2")
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert (again.status_code, again.json()["rows"]) == (202, 4)
    assert again.headers["location"] == first.headers["location"]
    for options in ({"bins": 3}, {"keep_rows": "false"}):
        refused(await send("k-1", **options), 409, "idempotency_conflict")
    # As many bytes, and other rows.
    other_rows = lines(rows(4)).replace(b"positive", b"negative", 1)
    refused(await send("k-1", other_rows), 409, "idempotency_conflict")
    refused(await send("k-1", b""), 409, "idempotency_conflict")
    packed = await served.post(gzip.compress(lines(rows(4))), **{"idempotency-key": "k-1", "content-encoding": "gzip"})
    assert packed.json()["id"] == first.json()["id"]
    for bad in ("", "a b", "x" * 256):
        refused(await send(bad), 422, "invalid_request")
    assert len(served.jobs()) == 2


# Whose they are, and how many


async def test_jobs_are_their_owners_and_their_rows_leave_with_them() -> None:
    async with serve() as served, callers(served) as who:
        job = await who.json("ann", "POST", content=lines(rows(3)))
        assert job["owner"] == "ann"
        path = f"/{job['id']}"
        await served.ended(job["id"])
        reads = [("GET", below) for below in ("", "/results", "/report")]
        for method, below in (*reads, ("DELETE", ""), ("POST", "/cancel")):
            refused(await who.call("bob", method, path + below), 404, "job_not_found")
        assert await who.json("bob", "GET") == {"jobs": [], "next": None}
        for caller in ("ann", "root"):
            assert [j["id"] for j in (await who.json(caller, "GET"))["jobs"]] == [job["id"]]
            assert (await who.json(caller, "GET", path))["status"] == "done"
            assert len((await who.call(caller, "GET", f"{path}/results")).text.splitlines()) == 3
        assert served.uploads() == [f"{job['id']}.jsonl"]
        assert (await who.json("ann", "DELETE", path))["outcome"] == "removed"
        assert served.uploads() == []
        for unknown in (path, "/x", "/..%2f..", "/%00", "/" + "a" * 5000, "/ü"):
            for method, below in (("GET", ""), ("GET", "/results"), ("DELETE", "")):
                assert (await who.call("ann", method, unknown + below)).status_code == 404
        # Another caller's key is another key.
        for caller in ("ann", "bob"):
            keyed = await who.json(caller, "POST", content=lines(rows(3)), headers={"idempotency-key": "k"})
            assert keyed["owner"] == caller


async def test_room_for_jobs_is_bounded() -> None:
    """By their number, of all and of each caller, and by the time that those are kept that have ended."""
    limits = {"max_jobs": 3, "max_jobs_per_caller": 2, "job_keep_s": 1000, "job_look_s": 0.02}
    async with serve(**limits) as served, callers(served) as who:
        served.predictor.hold()
        first, second = [(await who.json("ann", "POST", content=lines(rows(1))))["id"] for _ in range(2)]
        response = await who.call("ann", "POST", content=lines(rows(1)))
        error = refused(response, 429, "too_many_jobs")
        assert (error["limit"], error["got"]) == (2, 3)
        assert "retry-after" in response.headers
        third = await served.submit(rows(1))
        assert refused(await served.post(lines(rows(1))), 429, "too_many_jobs")["limit"] == 3
        served.predictor.released.set()
        for job_id in (first, second, third):
            await served.ended(job_id)
        # Who has most loses the oldest.
        fourth = await served.submit(rows(1))
        assert served.jobs() == [fourth, third, second]
        job = served.held(third)
        assert job.finished_at is not None
        job.finished_at -= 1001
        await served.until(lambda: served.jobs() == [fourth, second])


# Waiting, failing


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (QueueFullError("full"), "queue_full"),
        (DeviceMemoryError("one input does not fit"), "device_memory"),
        (ShelfFullError("all are in use"), "artifacts_full"),  # of a scorer that has no place for the artifact
        (StorageFullError("no room"), "storage_full"),  # of a real disk: test_jobs_process.py
    ],
)
async def test_what_passes_is_waited_out(error: Exception, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(job_pause_s=0.5, job_look_s=0.02) as served:
        on_disk, full = code == "storage_full", True
        tables, queue = served.state.jobs.ledger.disk.tables, served.state.backend.queue

        def refuse(write: Any, *args: Any, **kw: Any) -> Any:
            if full and (on_disk or args[0].caller.startswith("job:")):
                raise error
            return write(*args, **kw)

        for place, name in ((tables, "add_rows"), (tables, "end")) if on_disk else ((queue, "put"),):
            monkeypatch.setattr(place, name, partial(refuse, getattr(place, name)))
        job_id, other = await served.submit(rows(40)), await served.submit(rows(5))
        assert await served.paused(job_id) == code
        assert (await served.predict("row 1")).status_code == 200
        if on_disk:
            for method, below in (("DELETE", ""), ("POST", "/cancel")):
                response = await served.client.request(method, f"/evaluate/jobs/{other}{below}")
                refused(response, 503, "storage_full")
                assert "retry-after" in response.headers
        full = False
        done = await served.ended(job_id)
        assert (done["status"], done["paused"], done["result"]["rows"]) == ("done", None, 40)
        # The server tries by itself what it could not write down.
        assert (await served.ended(other))["status"] == ("cancelled" if on_disk else "done")


async def test_no_row_is_tried_again_while_the_pause_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(job_pause_s=1000) as served:
        board, tries, written = served.state.jobs, list[Any](), asyncio.Event()
        pause = board.ledger.pause

        def refuse(*args: Any, **kw: Any) -> Any:
            tries.append(args)
            raise QueueFullError("full")

        async def slowly(*args: Any) -> None:
            board._runner.wake()  # as any job's chunk does that ends meanwhile
            await asyncio.sleep(0.2)
            await pause(*args)
            written.set()

        monkeypatch.setattr(served.state.backend.queue, "put", refuse)
        monkeypatch.setattr(board.ledger, "pause", slowly)
        await served.submit(rows(4))
        await written.wait()
        assert len(tries) == 1


async def test_chunks_shrink_until_the_queue_takes_them() -> None:
    async with serve(max_queue_rows=8, max_inputs=4) as served:
        await served.done(rows(30))


@pytest.mark.parametrize(
    ("name", "digest", "status"),
    [("fake", "sha256:fake", "done"), ("fake", "sha256:another", "failed"), ("other", "sha256:another", "failed")],
)
async def test_a_job_goes_on_with_its_own_artifact_only(name: str, digest: str, status: str) -> None:
    """One that another start of the server left is there before the artifact is; a cut upload is not."""
    job_id, path = await stopped_job()
    (path / "laplora-jobs" / f"{'0' * 32}.part").touch()
    loading = FakePredictor(name)
    loading.artifact.digest = digest
    loading.hold()
    async with serve(loading, wait=False, artifact=name, jobs_dir=path) as served:
        assert await served.paused(job_id) == "not_ready"
        assert served.uploads() == [f"{job_id}.jsonl"]
        answers = served.held(job_id).about.answer_bytes
        assert served.state.jobs.quota.held_bytes == len(lines(rows(5))) + answers > 500
        loading.released.set()
        job = await served.ended(job_id)
        assert job["status"] == status
        if status == "failed":
            assert (job["error"]["code"], "fake" in job["error"]["message"]) == ("artifact_changed", True)
        await served.until(lambda: not served.uploads())
