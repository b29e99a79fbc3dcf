"""A row that takes the process with it, at every start: it is left out, so the server and its other work go on.

Starts are servers one after the other in this process; a kill leaves what is on disk at that moment.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from job_calls import ServedJobs, rows, serve, stopped_job
from serving import FakePredictor

from laplora.prompts.rows import EncodedRow
from service.jobs.store.database import Database
from service.jobs.store.job_tables import JobTables
from service.jobs.store.records import RowRange

pytestmark = pytest.mark.anyio

AT_FAULT = {"text": "row 90666", "label": "positive"}
#: Unclean ends that one row may bring about: with others beside it, then alone.
MOST_ENDS = 3


class HoldingPredictor(FakePredictor):
    """Holds the device once a row with the token comes; the server's own passes go through."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def predict(self, rows: Sequence[EncodedRow], *arguments: Any, **options: Any) -> list[Any]:
        if any(self.token in row.token_ids for row in rows):
            self.hold()
        return super().predict(rows, *arguments, **options)


def doomed(how: str) -> FakePredictor:
    if how != "fault":
        return HoldingPredictor(90_666)
    predictor = FakePredictor()
    predictor.poison[90_666] = RuntimeError("CUDA error: device-side assert triggered")
    return predictor


async def unclean_end(served: ServedJobs, how: str) -> Path:
    """Wait for the end that the row at fault brings about, and return the folder that it leaves."""
    device, jobs_dir = served.state.backend.device, Path(served.state.settings.jobs_dir)
    if how == "fault":
        await served.until(lambda: device.health.fault is not None)
        return jobs_dir
    await served.until(lambda: not served.predictor.released.is_set())
    if how == "kill":
        copy = jobs_dir.with_name(f"{jobs_dir.name}-killed")
        return Path(await served.state.jobs.ledger.disk.in_database(shutil.copytree, jobs_dir, copy))
    device.health._hang_s = 0.0
    await served.until(lambda: device.health.fault is not None)
    return jobs_dir


@pytest.mark.parametrize("how", ["fault", "hang", "kill"])
async def test_a_row_that_ends_the_process_is_left_out_after_a_few_starts(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    items = [*rows(20), AT_FAULT, *rows(19, 20)]
    ids: list[str] = []
    values: dict[str, Any] = {}
    for _ in range(MOST_ENDS):
        async with serve(doomed(how), **values) as served:
            if not ids:
                ids = [await served.submit(rows(30, 50)), await served.submit(items)]
            values["jobs_dir"] = await unclean_end(served, how)
    async with serve(doomed(how), **values) as served:
        innocent, job = [await served.ended(job_id) for job_id in ids]
        assert (innocent["rows_done"], innocent["rows_bad"]) == (30, 0)
        assert (job["rows_done"], job["rows_bad"], job["result"]["rows"]) == (40, 1, 39)
        assert job["bad_rows"] == [{"line": 21, "code": "device_fault"}]
        assert job["result"]["methods"] == await served.methods([item for item in items if item is not AT_FAULT])
    (told,) = [vars(record) for record in caplog.records if getattr(record, "event", "") == "job_row_given_up"]
    assert (told["job"], told["row"]) == (ids[1], 20)


def begun(jobs_dir: Path, become: dict[RowRange, int] | None = None) -> dict[RowRange, int]:
    """Return what the only job of a folder that no server has keeps as under way, after making it ``become`` this."""
    store = JobTables(Database.in_file(jobs_dir / "laplora-jobs" / "jobs.sqlite"))
    (job,) = store.reads.jobs()
    if become is not None:
        store.set_begun(1, become, fence=job.fence)
    (job,) = store.reads.jobs()
    store.close()
    return job.begun


async def test_a_job_that_may_have_no_bad_row_fails_and_the_server_stays() -> None:
    job_id, jobs_dir = await stopped_job()
    begun(jobs_dir, become={(0, 1): 2})
    async with serve(jobs_dir=jobs_dir, max_job_bad_rows=0) as served:
        job = await served.ended(job_id)
        assert (job["error"]["code"], job["bad_rows"]) == ("too_many_bad_rows", [{"line": 1, "code": "device_fault"}])
        assert "device_fault: 1" in job["error"]["message"]
        assert (await served.predict("a")).status_code == 200


async def test_suspect_rows_run_one_by_one_and_those_after_them_as_ever() -> None:
    job_id, jobs_dir = await stopped_job(count=40)
    assert begun(jobs_dir) == {}, "a clean stop suspects nothing"
    left = begun(jobs_dir, become={(0, 9): 0, (0, 1): 1})
    for _ in range(2):
        holding = HoldingPredictor(103)
        async with serve(holding, jobs_dir=jobs_dir) as served:
            await served.until(lambda: not holding.released.is_set())  # noqa: B023
        assert begun(jobs_dir) == left, "a clean stop among them is no try"
    async with serve(jobs_dir=jobs_dir, wait=False) as served:
        assert (await served.ended(job_id))["rows_bad"] == 0
    # The passes before these are the server's own.
    sizes = [len(batch) for name, batch in served.predictor.batches if name == "laplace"]
    assert sizes[-10:] == [1] * 9 + [31]
    assert begun(jobs_dir) == {}
