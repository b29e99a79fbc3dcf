"""Every row of a job with its answer: as JSON Lines and as Parquet, and figures by a column of the upload."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from typing import Any

import pyarrow.parquet as pq
import pytest
from job_calls import callers, cancel, delete, ended, folder, get, held, lines, poisoned, refused, rows, submit
from limits import longer_and_longer
from serving import FakePredictor, Served, serve

from laplora.answers.evaluation import questions
from laplora.prompts.templates import TEMPLATES
from service.jobs.tables_out import written

pytestmark = pytest.mark.anyio


def with_columns(count: int) -> list[dict[str, Any]]:
    """Return labelled rows with columns of their own, one of each kind and one of several."""
    return [
        {
            **row,
            "id": f"r{i}",
            "source": ("imdb", "rt", None)[i % 3],
            "stars": i % 5,
            "weight": 1 if i % 2 else 0.5,
            "checked": i % 2 == 0,
            "meta": {"page": i} if i % 7 == 0 else "none",
            "line": "theirs",
        }
        for i, row in enumerate(rows(count))
    ]


async def download(served: Served, job_id: str, **query: Any) -> bytes:
    response = await served.client.get(f"/evaluate/jobs/{job_id}/results", params=query)
    assert response.status_code == 200, response.text
    kind = query.get("format", "jsonl")
    assert response.headers["content-disposition"] == f'attachment; filename="{job_id}.{kind}"'
    return response.content


async def answered(served: Served, job_id: str, **query: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await download(served, job_id, **query)).splitlines()]


async def test_every_row_comes_back_as_it_was_sent_with_the_answer_of_predict(served: Served) -> None:
    items = with_columns(600)
    served.predictor.unfamiliar = {int(items[5]["text"].split()[1])}
    job_id = await submit(served, items)
    assert (await ended(served, job_id))["columns"] == list(items[0])
    got = await answered(served, job_id)
    assert [one["line"] for one in got] == list(range(1, 601))
    assert [one["input"] for one in got] == items
    assert {one["error"] for one in got} == {None}
    for number in (0, 5, 599):
        direct = (await served.predict(items[number]["text"])).json()["predictions"][0]
        left_out = ("calibrated_probs", "logit_mean", "logit_variance", "prediction_id")
        assert got[number]["answer"] == {k: v for k, v in direct.items() if k not in left_out}
    assert got[5]["answer"]["flags"] == ["unfamiliar"]


async def test_a_table_has_the_same_numbers_in_columns(served: Served) -> None:
    items = with_columns(600)
    job_id = await submit(served, items)
    await ended(served, job_id)
    table = pq.read_table(io.BytesIO(await download(served, job_id, format="parquet")))
    got = await answered(served, job_id)
    assert table.num_rows == 600
    columns = table.to_pydict()
    assert columns["line"] == list(range(1, 601))
    for name in ("text", "label", "id", "source", "stars", "weight", "checked"):
        assert columns[name] == [item[name] for item in items]
    # A name that the table has already, and values of several kinds.
    assert columns["upload_line"] == ["theirs"] * 600
    assert [json.loads(value) for value in columns["meta"]] == [item["meta"] for item in items]
    for name in ("label", "decision", "flags", "prediction_set", "score"):
        assert columns[f"answer_{name}"] == [one["answer"][name] for one in got]
    for field in ("probs", "map_probs", "probs_std"):
        for label in ("negative", "positive"):
            assert columns[f"answer_{field}.{label}"] == [one["answer"][field][label] for one in got]
    assert columns["answer_uncertainty.total"] == [one["answer"]["uncertainty"]["total"] for one in got]
    assert str(table.schema.field("stars").type) == "int64"
    assert str(table.schema.field("weight").type) == "double"


async def test_rows_without_an_answer_are_there_with_the_code(served: Served) -> None:
    served.predictor.poison.update({90_500 + n: RuntimeError("CUDA out of memory") for n in (3, 17)})
    job_id = await submit(served, poisoned(40, 3, 17))
    await ended(served, job_id)
    got = await answered(served, job_id)
    assert [(one["line"], one["error"]) for one in got if one["answer"] is None] == [
        (4, "device_memory"),
        (18, "device_memory"),
    ]
    table = pq.read_table(io.BytesIO(await download(served, job_id, format="parquet"))).to_pydict()
    assert [i for i, code in enumerate(table["answer_error"]) if code == "device_memory"] == [3, 17]
    assert table["answer_label"][3] is None


async def test_a_download_that_broke_off_goes_on_behind_the_last_line_that_came(served: Served) -> None:
    job_id = await submit(served, rows(700))
    await ended(served, job_id)
    whole = await download(served, job_id)
    for after in (0, 1, 255, 256, 257, 699):
        left = await download(served, job_id, after=after)
        assert b"".join(whole.splitlines(keepends=True)[after:]) == left
    assert await download(served, job_id, after=700) == b""
    assert await download(served, job_id, after=10**6) == b""


async def test_a_download_is_made_a_page_at_a_time(served: Served) -> None:
    job_id = await submit(served, rows(3000))
    await ended(served, job_id)
    job, disk = held(served, job_id), served.state.jobs.ledger.disk
    parts = [part async for part in written(disk, job, "jsonl")]
    assert [part.count(b"\n") for part in parts] == [256] * 11 + [184]
    table = b"".join([part async for part in written(disk, job, "parquet")])
    groups = pq.ParquetFile(io.BytesIO(table)).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [2048, 952]


async def test_no_part_of_a_prompt_is_in_the_database() -> None:
    predictor = FakePredictor(template=TEMPLATES["multiple_choice"], labels=("A", "B", "C"))
    items = [{"question": f"{i + 10} ?", "choices": [f"first{i}", f"second{i}"], "label": "A"} for i in range(6)]
    async with serve(predictor) as served:
        job_id = await submit(served, items)
        await ended(served, job_id)
        job, disk = held(served, job_id), served.state.jobs.ledger.disk
        kept = [one.answer for one in await disk.in_database(disk.store.kept.answers, job.number, (0, 6))]
        assert not any("first" in one or "second" in one or "label_text" in one for one in kept)
        for item, one in zip(items, await answered(served, job_id), strict=True):
            place = "AB".index(one["answer"]["label"])
            assert one["answer"]["label_text"] == item["choices"][place]


async def test_rows_can_be_had_while_the_job_runs() -> None:
    async with serve(batch_tokens=16) as served:
        served.predictor.hold()
        job_id = await submit(served, rows(60))
        assert await answered(served, job_id) == []
        job = held(served, job_id)
        served.predictor.released.set()
        await served.until(lambda: job.rows_done > 0)
        some = await answered(served, job_id)
        assert [one["line"] for one in some] == list(range(1, len(some) + 1))
        await ended(served, job_id)
        assert (await answered(served, job_id))[: len(some)] == some


@pytest.mark.parametrize("path", ["results", "slices?by=label"])
async def test_nothing_is_told_of_rows_that_are_not_kept(path: str, served: Served) -> None:
    unkept = await submit(served, rows(5), keep_rows="false")
    assert (await ended(served, unkept))["keep_rows"] is False
    served.predictor.hold()
    cancelled = await submit(served, rows(5))
    await cancel(served, cancelled)
    served.predictor.released.set()
    for job_id in (unkept, cancelled):
        refused(await served.client.get(f"/evaluate/jobs/{job_id}/{path}"), 404, "rows_not_kept")
    refused(await served.client.get(f"/evaluate/jobs/x/{path}"), 404, "job_not_found")


async def test_rows_are_their_owners_and_leave_with_the_job() -> None:
    async with serve() as served, callers(served) as who:
        job = await who.json("ann", "POST", content=lines(rows(3)))
        await ended(served, job["id"])
        for path in ("results", "slices?by=label"):
            refused(await who.call("bob", "GET", f"/{job['id']}/{path}"), 404, "job_not_found")
        assert len((await who.call("ann", "GET", f"/{job['id']}/results")).text.splitlines()) == 3
        await who.json("ann", "GET", f"/{job['id']}")
        assert [p.name for p in folder(served).glob("*.jsonl")] == [f"{job['id']}.jsonl"]
        await who.json("ann", "DELETE", f"/{job['id']}")
        assert not list(folder(served).glob("*.jsonl"))
        refused(await who.call("ann", "GET", f"/{job['id']}/results"), 404, "job_not_found")


async def test_one_caller_has_its_share_of_the_downloads(served: Served) -> None:
    job_id = await submit(served, rows(3))
    await ended(served, job_id)
    downloads = served.state.downloads
    for _ in range(4):
        downloads.add("127.0.0.1", 1)
    path = f"/evaluate/jobs/{job_id}"
    refused(await served.client.get(f"{path}/results"), 429, "client_too_many_requests")
    downloads.remove("127.0.0.1", 1)
    assert len(await answered(served, job_id)) == 3
    assert downloads.total == 3
    # Figures and reports have places of their own.
    figures = served.state.job_figures
    figures.add("127.0.0.1", 1)
    for what in ("slices?by=label", "report"):
        refused(await served.client.get(f"{path}/{what}"), 429, "client_too_many_requests")
    figures.remove("127.0.0.1", 1)
    assert (await slices(served, job_id, "label"))["rows"] == 3
    assert figures.total == 0


class _Connection:
    """A GET of a client that reads nothing more, and goes away when it is told to."""

    def __init__(self, path: str, query: bytes) -> None:
        self.scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode()}
        self.scope |= {"query_string": query, "scheme": "http", "headers": [(b"host", b"test")]}
        self.scope |= {"client": ("127.0.0.1", 1), "server": ("test", 80)}
        self.asked = self.stuck = False
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message.get("body"):
            self.stuck = True
            await self.gone.wait()


@pytest.mark.parametrize("gone", [True, False])
async def test_figures_end_when_their_client_goes_away_or_the_time_is_over(gone: bool) -> None:
    async with serve(**({} if gone else {"request_timeout_s": 0.05})) as served:
        job_id = await submit(served, rows(3))
        await ended(served, job_id)
        held_up = threading.Event()
        # Both threads of figures wait, as they would for long pages.
        run = served.state.figure_threads.run
        others = [asyncio.ensure_future(run(caller, held_up.wait)) for caller in ("ann", "bob")]
        path = f"/evaluate/jobs/{job_id}/slices"
        if gone:
            connection = _Connection(path, b"by=label")
            call = asyncio.ensure_future(served.app(connection.scope, connection.receive, connection.send))
            await served.until(lambda: served.state.job_figures.total == 1)
            connection.gone.set()
            await call
        else:
            refused(await served.client.get(path, params={"by": "label"}), 504, "deadline_exceeded")
        assert served.state.job_figures.total == 0
        held_up.set()
        await asyncio.gather(*others)


async def test_a_download_that_is_not_read_is_cut_off() -> None:
    for limit_s in longer_and_longer():
        async with serve(job_download_timeout_s=limit_s) as served:
            job_id = await submit(served, rows(3))
            await ended(served, job_id)
            connection = _Connection(f"/evaluate/jobs/{job_id}/results", b"")
            await served.app(connection.scope, connection.receive, connection.send)
            assert served.state.downloads.total == 0
        if connection.stuck:
            return


async def test_figures_of_many_values_are_added_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counting(rows: Any, truths: Any, labels: Any) -> Any:
        asked.append(len(rows))
        return questions(rows, truths, labels)

    monkeypatch.setattr("service.jobs.slices.questions", counting)
    async with serve(max_queue_rows=4000) as served:
        job_id = await submit(served, [{**row, "n": i % 500} for i, row in enumerate(rows(1000))])
        done = await ended(served, job_id)
        found = await slices(served, job_id, "n", most=1000)
        assert (found["values"], {one["rows"] for one in found["slices"]}) == (500, {2})
        methods = len(done["partial"])
        assert asked == [256] * 3 * methods + [232] * methods


async def test_the_uploads_that_are_kept_are_bounded_and_the_oldest_goes() -> None:
    """Their answers with them, which are larger than the rows: room for two."""
    async with serve() as served:
        job = held(served, await submit(served, rows(50)))
        await ended(served, job.id)
        assert job.answer_bytes > 50 * 100
        disk = served.state.jobs.ledger.disk
        (stored,) = await disk.in_database(disk.store.kept.jobs)
        assert (stored.answer_bytes, job.about.upload_bytes) == (job.answer_bytes, len(lines(rows(50))))
        size = job.disk_bytes
    async with serve(max_kept_job_bytes=2 * size + 500) as served:
        ids = []
        for _ in range(3):
            ids.append(await submit(served, rows(50)))
            await ended(served, ids[-1])
        await served.state.jobs._remove_old()
        assert [job.id for job in served.state.jobs.jobs_of(None)] == ids[:0:-1]


# Slices


async def slices(served: Served, job_id: str, by: str, **query: Any) -> dict[str, Any]:
    response = await served.client.get(f"/evaluate/jobs/{job_id}/slices", params={"by": by, **query})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_slices_say_what_a_job_of_their_rows_alone_says(served: Served) -> None:
    items = with_columns(300)
    served.predictor.unfamiliar = {int(items[i]["text"].split()[1]) for i in (0, 3, 4)}
    job_id = await submit(served, items)
    await ended(served, job_id)
    found = await slices(served, job_id, "source")
    assert (found["column"], found["rows"], found["values"], found["others"]) == ("source", 300, 3, None)
    assert [(one["value"], one["rows"], one["rows_bad"]) for one in found["slices"]] == [
        ("imdb", 100, 0),
        ("rt", 100, 0),
        (None, 100, 0),
    ]
    for one in found["slices"]:
        alone = await ended(served, await submit(served, [item for item in items if item["source"] == one["value"]]))
        assert one["methods"] == {
            name: {k: pytest.approx(metric, abs=1e-12) for k, metric in metrics.items()}
            for name, metrics in alone["partial"].items()
        }
        assert one["unfamiliar"] == alone["result"]["unfamiliar"]
    # Of any column, the label's too; the largest first, the rest together.
    by_stars = await slices(served, job_id, "stars", most=2)
    assert [one["value"] for one in by_stars["slices"]] == [0, 1]
    assert (by_stars["values"], by_stars["others"]["rows"]) == (5, 180)
    whole = await get(served, job_id)
    by_label = await slices(served, job_id, "label", most=1)
    hits = [one["methods"]["map"]["accuracy"] * one["rows"] for one in (by_label["slices"][0], by_label["others"])]
    assert sum(hits) / 300 == pytest.approx(whole["partial"]["map"]["accuracy"])


async def test_rows_without_an_answer_are_counted_in_their_slice(served: Served) -> None:
    served.predictor.poison[90_503] = RuntimeError("CUDA out of memory")
    job_id = await submit(served, poisoned(40, 3))
    await ended(served, job_id)
    found = {one["value"]: one for one in (await slices(served, job_id, "label"))["slices"]}
    assert sum(one["rows"] for one in found.values()) == 40
    assert (found["positive"]["rows_bad"], found["negative"]["rows_bad"]) == (1, 0)


async def test_a_column_that_is_none_and_one_of_too_many_values_are_refused() -> None:
    async with serve(max_queue_rows=4000) as served:
        items = [{**row, "n": i, "long": "x" * 300} for i, row in enumerate(rows(1100))]
        job_id = await submit(served, items)
        await ended(served, job_id)
        path = f"/evaluate/jobs/{job_id}/slices"
        error = refused(await served.client.get(path, params={"by": "none"}), 422, "invalid_request")
        assert error["field"] == "query.by"
        assert "'text', 'label', 'n', 'long'" in error["message"]
        for by in ("n", "text", "long"):
            assert refused(await served.client.get(path, params={"by": by}), 422, "too_many_values")["limit"] == 1000
        refused(await served.client.get(path), 422, "invalid_request")
        assert (await slices(served, job_id, "label"))["values"] == 2


async def test_jobs_are_listed_a_page_at_a_time(served: Served) -> None:
    ids = [await submit(served, rows(1)) for _ in range(5)]
    seen, before, pages = [], None, 0
    while True:
        query = {"limit": 2, **({} if before is None else {"before": before})}
        page = (await served.client.get("/evaluate/jobs", params=query)).json()
        seen += [job["id"] for job in page["jobs"]]
        pages += 1
        before = page["next"]
        if before is None:
            break
        if pages == 1:
            # A job that goes or comes moves none of the others to another page.
            await ended(served, ids[-1])
            await delete(served, ids[-1])
            await submit(served, rows(1))
    assert (seen, pages) == (ids[::-1], 3)
    for query in ({"limit": 0}, {"limit": 1001}, {"before": "x"}):
        refused(await served.client.get("/evaluate/jobs", params=query), 422, "invalid_request")


async def test_the_time_left_is_of_the_speed_of_late() -> None:
    async with serve(FakePredictor(), batch_tokens=16) as served:
        job = held(served, await submit(served, rows(60)))
        await ended(served, job.id)
        assert (await get(served, job.id))["seconds_left"] is None
    job.status, job.rows_done = "running", 20
    job.pace.clear()
    job.pace.extend([(100.0, 10), (105.0, 20)])
    assert (job.rows_per_second, job.seconds_left) == (2.0, 20.0)
