"""A row that takes the process with it, at every start: it is left out, so the server and its other work go on."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from job_calls import ended, rows, stopped_job
from job_servers import Servers, has, methods, submit_to, until
from server_process import Process
from serving import FakePredictor, serve

from laplora.prompts.rows import EncodedRow
from service.exit_status import ExitStatus
from service.jobs.records import Rows
from service.jobs.store import Store

#: Unclean ends that one row may bring about: with others beside it, then alone.
MOST_ENDS = 3


def start(servers: Servers, *flags: str) -> Process:
    return servers.start(*flags, script="faulty_server.py")


@pytest.mark.parametrize(
    ("token", "status"),
    [
        pytest.param("666", ExitStatus.DEVICE_FAULT, id="fault"),
        pytest.param("668", ExitStatus.DEVICE_FAULT, id="hang"),
        pytest.param("669", -signal.SIGKILL, id="killed"),
    ],
)
def test_a_row_that_ends_the_process_is_left_out_after_a_few_starts(servers: Servers, token: str, status: int) -> None:
    flags = ["--stall-s", "0.1", "--hang-s", "0.5"]
    items, at_fault = rows(40), 20
    items[at_fault] = {"text": token, "label": "positive"}
    ids: list[str] = []
    for _ in range(MOST_ENDS):
        process = start(servers, *flags)
        if not ids:
            with process.client() as client:
                ids += [submit_to(client, rows(30, 50)), submit_to(client, items)]
        assert process.left() == status
    process = start(servers, *flags)
    with process.client() as client:
        innocent, job = (until(client, job_id, has("done")) for job_id in ids)
        assert (innocent["rows_done"], innocent["rows_bad"]) == (30, 0)
        assert (job["rows_done"], job["rows_bad"], job["result"]["rows"]) == (40, 1, 39)
        assert job["bad_rows"] == [{"line": at_fault + 1, "code": "device_fault"}]
        assert job["result"]["methods"] == methods(client, [item for item in items if item["text"] != token])
        told = process.event("job_row_given_up")
        assert (told["job"], told["row"]) == (ids[1], at_fault)


def test_a_job_that_may_have_no_bad_row_fails_and_the_server_stays(servers: Servers) -> None:
    flags = ["--max-job-bad-rows", "0"]
    process = start(servers, *flags)
    with process.client() as client:
        job_id = submit_to(client, [{"text": "666", "label": "positive"}])
    for _ in range(MOST_ENDS):
        assert process.left() == ExitStatus.DEVICE_FAULT
        process = start(servers, *flags)
    with process.client() as client:
        job = until(client, job_id, has("failed"))
        assert (job["error"]["code"], job["bad_rows"]) == ("too_many_bad_rows", [{"line": 1, "code": "device_fault"}])
        assert "device_fault: 1" in job["error"]["message"]
        assert client.post("/predict", json={"inputs": [{"text": "a"}]}).status_code == 200


def begun(jobs_dir: Path, become: dict[Rows, int] | None = None) -> dict[Rows, int]:
    """Return what the only job of a folder that no server has keeps as under way, after making it ``become`` this."""
    store = Store(jobs_dir / "laplora-jobs" / "jobs.sqlite")
    if become is not None:
        store.restore_begun({1: become})
    (job,) = store.jobs()
    store.close()
    return job.begun


@pytest.mark.anyio
async def test_a_clean_stop_suspects_nothing() -> None:
    _, jobs_dir = await stopped_job(FakePredictor(), count=40)
    assert begun(jobs_dir) == {}


@pytest.mark.anyio
async def test_suspect_rows_run_one_by_one_and_those_after_them_as_ever() -> None:
    job_id, jobs_dir = await stopped_job(FakePredictor(), count=40)
    begun(jobs_dir, become={(0, 5): 0, (5, 9): 0})
    predictor = FakePredictor()
    async with serve(predictor, jobs_dir=jobs_dir, wait=False) as served:
        assert (await ended(served, job_id))["rows_bad"] == 0
    # The passes before these are the server's own.
    assert [len(batch) for name, batch in predictor.batches if name == "laplace"][-10:] == [1] * 9 + [31]
    assert begun(jobs_dir) == {}


class HoldingPredictor(FakePredictor):
    """Holds the device once a job's first row comes; the server's own passes go through."""

    def predict(self, rows: Sequence[EncodedRow], *arguments: Any, **options: Any) -> list[Any]:
        if any(103 in row.token_ids for row in rows):
            self.hold()
        return super().predict(rows, *arguments, **options)


@pytest.mark.anyio
async def test_a_clean_stop_among_suspect_rows_counts_no_try_and_goes_on_with_them() -> None:
    job_id, jobs_dir = await stopped_job(FakePredictor(), count=40)
    left = begun(jobs_dir, become={(0, 9): 0, (0, 1): 1})
    for _ in range(2):
        predictor = HoldingPredictor()
        async with serve(predictor, jobs_dir=jobs_dir) as served:
            await served.until(lambda: not predictor.released.is_set())  # noqa: B023
        assert begun(jobs_dir) == left
    async with serve(jobs_dir=jobs_dir) as served:
        assert (await ended(served, job_id))["rows_bad"] == 0
