"""The report of a job: a page of its rows, judged by what the artifact promises."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from job_calls import ServedJobs, rows, serve
from serving import FakePredictor, code

from service.jobs.reading import report as job_reports

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedJobs]:
    predictor = FakePredictor()
    review = SimpleNamespace(target_risk=0.05, threshold=0.3, guarantee="empirical")
    predictor.artifact.manifest.predictives = {"laplace": SimpleNamespace(thresholds=SimpleNamespace(review=review))}
    async with serve(predictor, jobs_dir=tmp_path / "jobs") as served:
        yield served


async def report(served: ServedJobs, job_id: str, **query: Any) -> str:
    answer = await served.client.get(f"/evaluate/jobs/{job_id}/report", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "sandbox"} <= set(policy)
    return answer.text


async def test_a_report_has_the_figures_of_the_result_and_the_rows_by_their_lines(served: ServedJobs) -> None:
    """With markup in a row's text and in a column of two values."""
    items = [
        {**row, "text": f"<script>alert(1)</script> {row['text']}", "source": ("<b>mail</b>", "chat")[i % 2]}
        for i, row in enumerate(rows(120))
    ]
    job_id = await served.submit(items)
    result = (await served.ended(job_id))["result"]
    page = await report(served, job_id)
    assert "120 uploaded rows" in page
    for method in ("map", "laplace"):
        assert f"{result['methods'][method]['nll']:.3f}" in page
    assert job_id in page
    assert result["artifact"]["digest"] in page
    assert "length of the prompt" not in page  # all are as long
    # What rows have in a column is a text of theirs.
    with_texts = await report(served, job_id, texts=True)
    for said in ("field source", "&lt;b&gt;mail&lt;/b&gt;", "chat", "&lt;script&gt;alert(1)&lt;/script&gt; row"):
        assert said in with_texts
        assert said not in page
    assert "<script" not in page + with_texts
    # The surest mistakes, by the answers themselves: the fake's probability of "negative" is in the text.
    chosen = [float(item["text"].split()[2]) / 100_000 for item in items]
    wrong = [i for i, item in enumerate(items) if (chosen[i] <= 0.5) != (item["label"] == "positive")]
    surest = sorted(wrong, key=lambda i: -max(chosen[i], 1 - chosen[i]))[:12]
    listed = re.findall(r"<bdi>line (\d+)</bdi>", page.partition("The most uncertain rows")[0])
    assert [int(number) - 1 for number in listed] == surest


async def test_a_large_job_is_looked_at_in_evenly_spaced_rows(
    served: ServedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_reports, "MOST_ROWS", 100)
    job_id = await served.done(rows(600))
    page = await report(served, job_id)
    assert "of 100 of the rows, evenly spaced" in page
    assert "600 uploaded rows" in page
    ledger, job = served.state.jobs.ledger, served.held(job_id)
    taken = await job_reports.take_rows(ledger.disk, job, asyncio.to_thread)
    assert taken.references == [f"line {number + 1}" for number in range(0, 600, 6)]
    # Unfamiliar rows are counted among these: of all rows the limit would be passed or missed by another noise.
    for answer in taken.answers[:25]:
        answer["unfamiliar"] = True
    result = (await ledger.result(job)).model_copy(update={"unfamiliar": 0.01})
    manifest = served.predictor.artifact.manifest
    assert job_reports.job_report(job, result, taken, manifest, texts=False).unfamiliar == 0.25
    monkeypatch.setattr(job_reports, "MOST_NUMBERS", 6 * 20)  # of three numbers by label, two labels each
    assert len((await job_reports.take_rows(ledger.disk, job, asyncio.to_thread)).references) == 20


async def test_what_has_no_report_is_named(served: ServedJobs) -> None:
    async def refused(job_id: str) -> tuple[int, str]:
        return code(await served.client.get(f"/evaluate/jobs/{job_id}/report"))

    assert await refused("0" * 32) == (404, "job_not_found")
    served.predictor.hold()
    job_id = await served.submit(rows(40))
    assert await refused(job_id) == (404, "report_not_found")
    served.predictor.released.set()
    await served.ended(job_id)
    unkept = await served.done(rows(40), keep_rows=False)
    assert (await refused(unkept))[1] == "rows_not_kept"
    served.predictor.artifact.digest = "sha256:another"  # a new version took its place
    assert await refused(job_id) == (404, "report_not_found")
