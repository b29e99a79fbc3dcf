"""The report of a job: a page of its rows, judged by what the artifact promises."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from job_calls import ended, held, rows, submit
from serving import FakePredictor, Served, code, serve
from stored_jobs import new_job

from laplora.answers.evaluation import measure
from laplora.report.page import html
from laplora.report.verdict import judge
from service.errors import ReportNotFoundError
from service.jobs.reading import report as job_reports
from service.jobs.store.records import Job, JobOptions, JobResult

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    predictor = FakePredictor()
    review = SimpleNamespace(target_risk=0.05, threshold=0.3, guarantee="empirical")
    predictor.artifact.manifest.predictives = {"laplace": SimpleNamespace(thresholds=SimpleNamespace(review=review))}
    async with serve(predictor, jobs_dir=tmp_path / "jobs") as served:
        yield served


async def report(served: Served, job_id: str, **query: Any) -> str:
    answer = await served.client.get(f"/evaluate/jobs/{job_id}/report", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "sandbox"} <= set(policy)
    return answer.text


async def test_a_report_has_the_figures_of_the_result_and_the_rows_by_their_lines(served: Served) -> None:
    """With markup in a row's text and in a column of two values."""
    items = [
        {**row, "text": f"<script>alert(1)</script> {row['text']}", "source": ("<b>mail</b>", "chat")[i % 2]}
        for i, row in enumerate(rows(120))
    ]
    job_id = await submit(served, items)
    result = (await ended(served, job_id))["result"]
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


async def test_a_large_job_is_looked_at_in_evenly_spaced_rows(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = await submit(served, rows(600))
    await ended(served, job_id)
    monkeypatch.setattr(job_reports, "MOST_ROWS", 100)
    taken = await job_reports.take_rows(served.state.jobs.ledger.disk, held(served, job_id), asyncio.to_thread)
    assert taken.numbers == list(range(0, 600, 6))
    page = await report(served, job_id)
    assert "of 100 of the rows, evenly spaced" in page
    assert "600 uploaded rows" in page
    # Of three numbers by label, two labels each.
    monkeypatch.setattr(job_reports, "MOST_NUMBERS", 6 * 20)
    taken = await job_reports.take_rows(served.state.jobs.ledger.disk, held(served, job_id), asyncio.to_thread)
    assert (len(taken.numbers), len(taken.answers[0]["probs"])) == (20, 2)


async def test_what_has_no_report_is_named(served: Served) -> None:
    async def refused(job_id: str) -> tuple[int, str]:
        return code(await served.client.get(f"/evaluate/jobs/{job_id}/report"))

    assert await refused("0" * 32) == (404, "job_not_found")
    served.predictor.hold()
    job_id = await submit(served, rows(40))
    assert await refused(job_id) == (404, "report_not_found")
    served.predictor.released.set()
    await ended(served, job_id)
    unkept = await submit(served, rows(40), keep_rows=False)
    await ended(served, unkept)
    assert (await refused(unkept))[1] == "rows_not_kept"
    served.predictor.artifact.digest = "sha256:another"  # a new version took its place
    assert await refused(job_id) == (404, "report_not_found")


def several(count: int) -> tuple[Job, JobResult, job_reports.MeasuredRows]:
    """Return a job of inputs with three labels each, of which several may be right, its result and its rows."""
    labels = ("news", "sport", "weather")
    job = new_job(rows=count, labels=labels, several=True, options=JobOptions(resamples=10), keep_rows=True)
    job.rows_done = count
    taken = job_reports.MeasuredRows()
    for i in range(count):
        present = [0.9, 0.2, 0.6 if i % 2 else 0.4]
        taken.numbers.append(i)
        taken.truths.append((0, 2) if i % 2 and i % 10 != 1 else (0,))
        taken.answers.append(
            {
                "probs": present, "map_probs": present, "probs_std": None, "score": 0.6, "tokens": 5,
                "decision": "review" if i % 4 == 1 else "accept", "prediction_set": ["news"], "epistemic": None,
                "unfamiliar": False,
            }
        )  # fmt: skip
        taken.values.append({"text": f"text {i}"})
    pairs = [(answer["probs"], None) for answer in taken.answers]
    rows = [{"map": pair, "laplace": pair} for pair in pairs]
    methods = measure(rows, taken.truths, names=job.about.label_names, how=job.about.options)
    return job, JobResult(artifact=job.about.artifact, rows=count, methods=methods, unfamiliar=None), taken


def promises() -> Any:
    review = SimpleNamespace(target_risk=0.05, threshold=0.3, guarantee="empirical")
    return SimpleNamespace(
        recommended=SimpleNamespace(predictive="laplace", reason="it was better"),
        predictives={"laplace": SimpleNamespace(thresholds=SimpleNamespace(review=review))},
        calibration=SimpleNamespace(coverage=0.9, rows=150),
        familiarity=None,
    )


def test_where_several_labels_may_be_right_each_is_a_question_of_its_own() -> None:
    job, result, taken = several(40)
    report = job_reports.job_report(job, result, taken, promises(), texts=True)
    page = html(report, judge(report))
    assert len(report.rows) == 3 * 40
    assert report.questions == 3
    assert judge(report).kind not in ("ship", "review")
    assert report.labels == ("absent", "present")
    # Wrong: weather, said to be present of the rows 1, 11, 21 and 31, which it is not.
    assert report.rows.wrong.nonzero()[:, 0].tolist() == [3 * i + 2 for i in (1, 11, 21, 31)]
    assert report.rows.references[5] == "line 2, weather"
    assert report.rows.review.nonzero()[:, 0].tolist() == [3 * i + k for i in range(1, 40, 4) for k in range(3)]
    for said in ("Rows by “label”", "<bdi>weather</bdi>", "question of its own", "text 11"):
        assert said in page


def test_an_average_over_orders_is_the_method_that_is_judged() -> None:
    job, result, taken = several(40)
    result.methods.update({f"{name}_order_average": result.methods[name] for name in ("map", "laplace")})
    options = job.about.options.model_copy(update={"order_average": True})
    job.about = job.about.model_copy(update={"options": options})
    report = job_reports.job_report(job, result, taken, promises(), texts=False)
    assert report.served == "laplace_order_average"
    assert "order average" in html(report, judge(report))


def test_a_job_of_which_no_row_was_scored_has_no_report() -> None:
    job, result, _ = several(4)
    with pytest.raises(ReportNotFoundError, match="no row"):
        job_reports.job_report(job, result, job_reports.MeasuredRows(), promises(), texts=False)


def test_unfamiliar_rows_are_counted_among_the_rows_that_are_looked_at() -> None:
    """Its limit is of so many rows: a share of all rows would pass or fail by another noise."""
    job, result, taken = several(40)
    for answer in taken.answers[:10]:
        answer["unfamiliar"] = True
    assert job_reports.job_report(job, result, taken, promises(), texts=False).unfamiliar is None  # nothing flags them
    result.unfamiliar = 0.01
    assert job_reports.job_report(job, result, taken, promises(), texts=False).unfamiliar == 0.25
