"""A row that takes the process with it, at every start: it is left out, so the server and its other work go on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import Process, fake_artifacts, server_process
from serving import FakePredictor, serve, settings
from test_jobs import ended, rows, submit
from test_jobs_process import FAKE_SERVER, is_done, until
from test_jobs_process import submit as submit_to_process

from laplora.prompts.templates import EncodedRow
from service.exit_status import ExitStatus
from service.jobs.folder import JobsFolder
from service.jobs.records import Rows
from service.jobs.store import Store

FAULTY_SERVER = FAKE_SERVER.with_name("faulty_server.py")
Start = Callable[..., Process]
#: Unclean ends that one row may bring about: with others beside it, then alone.
MOST_ENDS = 3


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    root = fake_artifacts(tmp_path)
    with ExitStack() as stack:

        def run(*flags: str) -> Process:
            command = [str(FAULTY_SERVER), "--artifact", "fake", "--artifacts-root", str(root), *flags]
            environment = {"LAPLORA_JOBS_DIR": str(tmp_path / "jobs"), "FAULT_GATE": str(tmp_path / "never")}
            return stack.enter_context(server_process(command, environment))

        yield run


def begun(jobs_dir: Path) -> list[dict[Rows, int]]:
    """Return what a folder that no server has keeps as under way, by job."""
    store = Store(jobs_dir / "laplora-jobs" / "jobs.sqlite")
    try:
        return [job.begun for job in store.jobs()]
    finally:
        store.close()


@pytest.mark.parametrize(
    ("token", "status"),
    [
        pytest.param("666", ExitStatus.DEVICE_FAULT, id="fault"),
        pytest.param("668", ExitStatus.DEVICE_FAULT, id="hang"),
        pytest.param("669", -signal.SIGKILL, id="killed"),
    ],
)
def test_a_row_that_ends_the_process_is_left_out_after_a_few_starts(start: Start, token: str, status: int) -> None:
    flags = ["--stall-s", "0.1", "--hang-s", "0.5"]
    items, at_fault = rows(40), 20
    items[at_fault] = {"text": token, "label": "positive"}
    ids: list[str] = []
    for _ in range(MOST_ENDS):
        process = start(*flags)
        if not ids:
            with process.client() as client:
                ids.append(submit_to_process(client, rows(30, 50), resamples=10))
                ids.append(submit_to_process(client, items, resamples=10))
        assert process.left() == status
    process = start(*flags)
    with process.client() as client:
        innocent, job = (until(client, job_id, is_done) for job_id in ids)
        assert (innocent["rows_done"], innocent["rows_bad"]) == (30, 0)
        assert (job["rows_done"], job["rows_bad"], job["result"]["rows"]) == (40, 1, 39)
        assert job["bad_rows"] == [{"line": at_fault + 1, "code": "device_fault"}]
        good = [item for item in items if item["text"] != token]
        direct = client.post("/evaluate", json={"inputs": good, "options": {"resamples": 10}})
        assert job["result"]["methods"] == direct.json()["methods"]
        told = process.event("job_row_given_up")
        assert (told["job"], told["row"]) == (ids[1], at_fault)


def test_a_job_that_may_have_no_bad_row_fails_and_the_server_stays(start: Start) -> None:
    flags = ["--max-job-bad-rows", "0"]
    process = start(*flags)
    with process.client() as client:
        job_id = submit_to_process(client, [{"text": "666", "label": "positive"}], resamples=10)
    for _ in range(MOST_ENDS - 1):
        assert process.left() == ExitStatus.DEVICE_FAULT
        process = start(*flags)
    assert process.left() == ExitStatus.DEVICE_FAULT
    process = start(*flags)
    with process.client() as client:
        job = failed(client, job_id)
        assert (job["error"]["code"], job["bad_rows"]) == ("too_many_bad_rows", [{"line": 1, "code": "device_fault"}])
        assert "device_fault: 1" in job["error"]["message"]
        assert client.post("/predict", json={"inputs": [{"text": "a"}]}).status_code == 200


def failed(client: httpx.Client, job_id: str) -> dict[str, Any]:
    while (job := client.get(f"/evaluate/jobs/{job_id}").json())["status"] != "failed":
        assert job["status"] != "done", json.dumps(job)
    return dict(job)


@pytest.mark.anyio
async def test_a_clean_stop_suspects_nothing() -> None:
    jobs_dir = settings().jobs_dir
    assert jobs_dir is not None
    predictor = FakePredictor()
    async with serve(predictor, jobs_dir=jobs_dir) as served:
        predictor.hold()
        await submit(served, rows(40), resamples=10)
        await served.until(predictor.entered.is_set)
    assert begun(jobs_dir) == [{}]


def suspected(jobs_dir: Path, rows_begun: dict[Rows, int]) -> None:
    """Leave a folder's only job as an unclean end does."""
    JobsFolder(jobs_dir).close()
    store = Store(jobs_dir / "laplora-jobs" / "jobs.sqlite")
    store.restore_begun({1: rows_begun})
    store.close()


async def stopped_job(jobs_dir: Path, count: int) -> str:
    """Leave a job of which nothing has run; return its id."""
    predictor = FakePredictor()
    async with serve(predictor, jobs_dir=jobs_dir) as served:
        predictor.hold()
        job = await submit(served, rows(count), resamples=10)
        await served.until(predictor.entered.is_set)
    return str(job["id"])


@pytest.mark.anyio
async def test_suspect_rows_run_one_by_one_and_those_after_them_as_ever() -> None:
    jobs_dir = settings().jobs_dir
    assert jobs_dir is not None
    job_id = await stopped_job(jobs_dir, 40)
    suspected(jobs_dir, {(0, 5): 0, (5, 9): 0})
    predictor = FakePredictor()
    async with serve(predictor, jobs_dir=jobs_dir, wait=False) as served:
        assert (await ended(served, job_id))["rows_bad"] == 0
    # The passes before these are the server's own.
    assert [len(batch) for name, batch in predictor.batches if name == "laplace"][-10:] == [1] * 9 + [31]
    assert begun(jobs_dir) == [{}]


class HoldingPredictor(FakePredictor):
    """Holds the device once a job's first row comes; the server's own passes go through."""

    def predict(self, rows: Sequence[EncodedRow], *arguments: Any, **options: Any) -> list[Any]:
        if any(103 in row.token_ids for row in rows):
            self.hold()
        return super().predict(rows, *arguments, **options)


@pytest.mark.anyio
async def test_a_clean_stop_among_suspect_rows_counts_no_try_and_goes_on_with_them() -> None:
    jobs_dir = settings().jobs_dir
    assert jobs_dir is not None
    job_id = await stopped_job(jobs_dir, 40)
    left: dict[Rows, int] = {(0, 9): 0, (0, 1): 1}
    suspected(jobs_dir, left)
    for _ in range(2):
        predictor = HoldingPredictor()
        async with serve(predictor, jobs_dir=jobs_dir) as served:
            await served.until(lambda: not predictor.released.is_set())  # noqa: B023
        assert begun(jobs_dir) == [left]
    async with serve(jobs_dir=jobs_dir) as served:
        assert (await ended(served, job_id))["rows_bad"] == 0
