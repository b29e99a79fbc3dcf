"""Jobs in a real browser: upload, progress as it happens, cancel, result, removal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser import Visit, needs_chromium, visit
from job_calls import lines, rows
from playwright.sync_api import Browser, Locator, Page, expect
from server_process import fake_artifacts, fake_server

pytestmark = needs_chromium


@pytest.fixture
def at_jobs(visited: Visit) -> Page:
    visited.show("jobs")
    return visited.page


def evaluate(page: Page, content: bytes) -> None:
    page.get_by_label("File of rows").set_input_files({"name": "r.jsonl", "mimeType": "", "buffer": content})
    page.get_by_role("button", name="Evaluate", exact=True).click()


def newest(page: Page, status: str) -> Locator:
    """Return the newest job, once it has this status."""
    job = page.locator(".job").first
    expect(job).to_have_attribute("data-status", status)
    return job


def test_a_file_is_evaluated_and_its_result_shown_and_saved(at_jobs: Page) -> None:
    evaluate(at_jobs, lines(rows(40)))
    job = newest(at_jobs, "done")
    expect(job).to_contain_text("40 of 40 rows")
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


def test_a_dropped_file_is_evaluated(at_jobs: Page) -> None:
    """As the browser hands one over: an event with a file in it."""
    dropped = at_jobs.evaluate_handle(
        "text => { const t = new DataTransfer(); t.items.add(new File([text], 'rows.jsonl')); return t; }",
        lines(rows(7)).decode(),
    )
    at_jobs.dispatch_event("#upload", "drop", {"dataTransfer": dropped})
    expect(newest(at_jobs, "done")).to_contain_text("7 of 7 rows")


def test_the_examples_are_a_file_too(at_jobs: Page) -> None:
    at_jobs.get_by_role("button", name="Evaluate the playground's examples").click()
    expect(newest(at_jobs, "done")).to_contain_text("5 of 5 rows")


def test_what_is_wrong_with_a_file_is_said_with_its_line(at_jobs: Page) -> None:
    evaluate(at_jobs, lines(rows(2)) + b'{"text": "a", "label": "purple"}\n')
    expect(at_jobs.locator("#job-problem")).to_contain_text("lines.3")
    evaluate(at_jobs, lines(rows(3)))
    expect(newest(at_jobs, "done")).to_contain_text("3 of 3 rows")
    assert at_jobs.locator("#job-problem").inner_text() == ""


def test_a_job_is_watched_and_cancelled(browser: Browser, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with fake_server(fake_artifacts(tmp_path), FAKE_GATE=str(gate)) as process, process.client() as client:
        gate.unlink()
        with visit(browser, str(client.base_url)) as visited:
            visited.show("jobs")
            page = visited.page
            evaluate(page, lines(rows(300)))
            running = newest(page, "running")
            progress = running.get_by_role("progressbar", name="Rows done")
            assert (progress.get_attribute("value"), progress.get_attribute("max")) == ("0", "300")
            running.get_by_role("button", name="Cancel").click()
            cancelled = newest(page, "cancelled")
            expect(page.locator("#job-said")).to_have_text("The job is cancelled.")
            expect(progress).to_be_hidden()
            gate.touch()
            cancelled.get_by_role("button", name="Remove").click()
            expect(page.locator(".job")).to_have_count(0)
            expect(page.locator("#jobs-empty")).to_be_visible()
        assert client.get("/evaluate/jobs").json()["jobs"] == []


def test_progress_comes_by_events_and_not_by_asking_again(browser: Browser, tmp_path: Path) -> None:
    """The list is cut off once the job is there, so only its events can say that it is done."""
    gate = tmp_path / "gate"
    gate.touch()
    with fake_server(fake_artifacts(tmp_path), FAKE_GATE=str(gate)) as process, process.client() as client:
        gate.unlink()
        with visit(browser, str(client.base_url)) as visited:
            visited.show("jobs")
            with visited.page.expect_request("**/events"):
                evaluate(visited.page, lines(rows(20)))
            newest(visited.page, "running")
            visited.page.route("**/evaluate/jobs", lambda route: route.abort())
            gate.touch()
            expect(newest(visited.page, "done")).to_contain_text("20 of 20 rows")


def test_nobody_is_followed_whom_nobody_looks_at(browser: Browser, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with fake_server(fake_artifacts(tmp_path), FAKE_GATE=str(gate)) as process, process.client() as client:
        gate.unlink()
        with visit(browser, str(client.base_url)) as visited:
            visited.show("jobs")
            with visited.page.expect_request("**/events") as followed:
                evaluate(visited.page, lines(rows(20)))
            with visited.page.expect_event("requestfailed", lambda request: request == followed.value):
                visited.show("server")
        gate.touch()
