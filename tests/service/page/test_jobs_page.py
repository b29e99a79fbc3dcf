"""Jobs in a real browser: upload, progress as it happens, cancel, result, removal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import Visit, choose, needs_chromium, visit
from job_calls import lines, rows
from job_servers import has, job_until, submit_to
from playwright.sync_api import Browser, Locator, Page, expect
from server_process import fake_artifacts, fake_server

pytestmark = needs_chromium


@pytest.fixture
def at_jobs(visited: Visit) -> Page:
    visited.show("jobs")
    return visited.page


def sent(page: Page, send: Callable[[], None]) -> Locator:
    with page.expect_response(lambda answer: answer.request.method == "POST") as accepted:
        send()
    assert accepted.value.status == 202, accepted.value.text()
    return page.locator(f".job[data-job='{accepted.value.json()['id']}']")


def evaluate(page: Page, content: bytes) -> Locator:
    """Send a file; return its job on the page."""
    choose(page, content)
    return sent(page, page.get_by_role("button", name="Send", exact=True).click)


def done(job: Locator, rows_done: int) -> None:
    expect(job).to_have_attribute("data-status", "done")
    expect(job).to_contain_text(f"{rows_done} of {rows_done} rows")


def test_a_file_is_evaluated_and_its_result_and_report_are_shown_and_every_answer_saved(
    at_jobs: Page, visited: Visit
) -> None:
    job = evaluate(at_jobs, lines([{**row, "source": "imdb"} for row in rows(40)]))
    done(job, 40)
    expect(at_jobs.locator("#job-said")).to_have_text("The job is done.")
    job.get_by_role("button", name="Show the result").click()
    expect(job.get_by_role("row", name="laplace")).to_be_visible()
    with at_jobs.expect_download() as download:
        job.get_by_role("button", name="Download the result").click()
    saved: dict[str, Any] = json.loads(Path(download.value.path()).read_text())
    assert (saved["rows"], saved["result"]["rows"]) == (40, 40)
    shown = job.get_by_role("row", name="laplace").inner_text()
    metrics = saved["result"]["methods"]["laplace"]
    low, high = metrics["intervals"]["nll"]
    assert f"{100 * metrics['accuracy']:.1f} %" in shown
    assert f"{metrics['nll']:.3f} ({low:.3f} to {high:.3f})" in shown
    # Drawing rows anew pushes an ECE up: the interval of the answer is none that people should read.
    assert f"{metrics['ece']:.3f}" in shown.split("\t")
    with at_jobs.expect_download() as download:
        job.get_by_role("link", name="Every answer").click()
    answers = [json.loads(line) for line in Path(download.value.path()).read_bytes().splitlines()]
    assert [row["line"] for row in answers] == list(range(1, 41))
    assert {row["input"]["source"] for row in answers} == {"imdb"}
    # The report needs no more than its policy grants.
    at_jobs.context.on("console", lambda message: visited.complaints.append(message.text))
    with at_jobs.expect_popup() as opened:
        job.get_by_role("link", name="Report").click()
    expect(opened.value.locator("body")).to_contain_text("40 uploaded rows")


def test_a_dropped_file_and_the_examples_are_evaluated_too(at_jobs: Page) -> None:
    """As the browser hands one over: an event with a file in it."""
    dropped = at_jobs.evaluate_handle(
        "text => { const t = new DataTransfer(); t.items.add(new File([text], 'rows.jsonl')); return t; }",
        lines(rows(7)).decode(),
    )
    done(sent(at_jobs, lambda: at_jobs.dispatch_event("#upload", "drop", {"dataTransfer": dropped})), 7)
    # A file that misses does not take the place of the page.
    missed = "const e = new DragEvent('drop', {bubbles: true, cancelable: true}); document.body.dispatchEvent(e);"
    assert at_jobs.evaluate(f"() => {{ {missed} return e.defaultPrevented; }}")
    done(sent(at_jobs, at_jobs.get_by_role("button", name="Evaluate the playground's examples").click), 5)


def test_what_is_wrong_with_a_file_is_said_with_its_line(at_jobs: Page) -> None:
    send = at_jobs.get_by_role("button", name="Send", exact=True)
    choose(at_jobs, b"{}\n" + lines(rows(2)) + b"what\n")
    send.click()
    expect(at_jobs.locator("#job-problem")).to_have_text("2 lines cannot be used:")
    assert [item.split(":")[0] for item in at_jobs.locator("#job-lines li").all_inner_texts()] == ["Line 1", "Line 4"]
    # Rows that are not kept are not offered.
    at_jobs.get_by_label("Keep the rows and their answers").uncheck()
    job = evaluate(at_jobs, lines(rows(3)))
    done(job, 3)
    # Nor is what comes of labels alone, where there are none.
    bare = evaluate(at_jobs, lines([{"text": row["text"]} for row in rows(2)]))
    done(bare, 2)
    expect(at_jobs.locator("#job-said")).to_have_text("The job is done.")
    expect(bare).to_contain_text("% accepted")
    expect(bare.get_by_role("button", name="Show the result")).to_be_hidden()
    assert at_jobs.locator("#job-problem").inner_text() == ""
    assert at_jobs.locator("#job-lines li").count() == 0
    expect(job.get_by_role("button", name="Show the result")).to_be_visible()
    for link in ("Every answer", "Report"):
        expect(job.get_by_role("link", name=link)).to_be_hidden()


def test_a_job_is_watched_while_somebody_looks_and_cancelled_and_older_ones_are_shown_when_asked_for(
    browser: Browser, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with (
        fake_server(fake_artifacts(tmp_path), "--max-jobs-per-caller", "50", FAKE_GATE=str(gate)) as process,
        process.client() as client,
        visit(browser, str(client.base_url)) as visited,
    ):
        gate.unlink()
        visited.show("jobs")
        page = visited.page
        job = evaluate(page, lines(rows(300)))
        expect(job).to_have_attribute("data-status", "running")
        progress = job.get_by_role("progressbar", name="Rows done")
        assert (progress.get_attribute("value"), progress.get_attribute("max")) == ("0", "300")
        job.get_by_role("button", name="Cancel").click()
        expect(job).to_have_attribute("data-status", "cancelled")
        expect(page.locator("#job-said")).to_have_text("The job is cancelled.")
        expect(progress).to_be_hidden()
        job.get_by_role("button", name="Remove").click()
        expect(page.locator("#jobs-empty")).to_be_visible()
        # Nobody asks for what nobody looks at.
        job = evaluate(page, lines(rows(20)))
        expect(job).to_have_attribute("data-status", "running")
        visited.show("server")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        gate.touch()
        job_until(client, job.get_attribute("data-job") or "", has("done"))
        page.wait_for_timeout(1500)
        assert not [url for url in asked if "evaluate/jobs" in url]
        visited.show("jobs")
        done(job, 20)
        for _ in range(22):
            submit_to(client, rows(1))
        page.reload()
        expect(page.locator(".job")).to_have_count(20)
        page.get_by_role("button", name="Show older ones").click()
        expect(page.locator(".job")).to_have_count(23)
        expect(page.get_by_role("button", name="Show older ones")).to_be_hidden()
        shown = [one.get_attribute("data-job") for one in page.locator(".job").all()]
        assert shown == [one["id"] for one in client.get("/evaluate/jobs").json()["jobs"]]
