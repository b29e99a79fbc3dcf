"""Reports over HTTP: whoever wrote one, it is shown as a page that can do nothing, and only as the manifest has it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from report_records import report
from serving import FakePredictor, LeavingClient, Served, artifacts_in, code, serve

from laplora.artifact.manifest import FileRecord
from laplora.artifact.report_page import MOST_BYTES, REPORT_PAGE
from laplora.report.page import html
from laplora.report.verdict import judge
from service.artifacts.reports import Reports

pytestmark = pytest.mark.anyio

PAGE = html(report(texts=["a text"] * 120), judge(report()))


def bring(predictor: FakePredictor, page: str | bytes, name: str = REPORT_PAGE) -> Path:
    """Put a report into the folder of a fake's artifact, and into its manifest; return its path."""
    path = predictor.artifact.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = page.encode() if isinstance(page, str) else page
    path.write_bytes(content)
    record = FileRecord(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    predictor.artifact.manifest.files = {name: record}
    return path


@pytest.fixture
def first(tmp_path: Path) -> FakePredictor:
    return artifacts_in(tmp_path, "first", "second")[0]


@pytest.fixture
async def served(tmp_path: Path, first: FakePredictor) -> AsyncIterator[Served]:
    async with serve(first, artifact="first", artifacts_root=tmp_path) as served:
        yield served


async def listed(served: Served) -> dict[str, str | None]:
    return {one["name"]: one["report"] for one in (await served.client.get("/artifacts")).json()["artifacts"]}


async def test_a_report_is_listed_and_shown_and_may_do_nothing(served: Served, first: FakePredictor) -> None:
    assert await listed(served) == {"first": None, "second": None}
    bring(first, PAGE)
    path = (await listed(served))["first"]
    assert path == "/artifacts/first/report"
    answer = await served.client.get(path)
    assert (answer.status_code, answer.text) == (200, PAGE)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    parts = (part.partition(" ") for part in answer.headers["content-security-policy"].split("; "))
    found = {name: value for name, _, value in parts}
    assert found["default-src"] == "'none'"
    assert found["sandbox"] == ""  # neither allow-scripts nor allow-same-origin
    assert {"script-src", "connect-src", "frame-src"} & found.keys() == set()
    assert {found[name] for name in ("frame-ancestors", "base-uri", "form-action")} == {"'none'"}


async def test_what_is_not_there_is_named(served: Served, first: FakePredictor) -> None:
    assert code(await served.client.get("/artifacts/first/report")) == (404, "report_not_found")
    assert code(await served.client.get("/artifacts/nowhere/report")) == (404, "artifact_not_found")
    for name in ("..", "first%2F..%2Ffirst", "first%00", "%2e%2e%2ffirst"):
        assert (await served.client.get(f"/artifacts/{name}/report")).status_code == 404
    bring(first, PAGE, "report/other.html")
    assert code(await served.client.get("/artifacts/first/report")) == (404, "report_not_found")


async def test_only_the_file_of_the_manifest_is_shown(served: Served, first: FakePredictor, tmp_path: Path) -> None:
    path, secret = bring(first, PAGE), tmp_path / "secret"
    secret.write_text("secret of the disk")

    async def refused() -> None:
        answer = await served.client.get("/artifacts/first/report")
        assert code(answer) == (404, "report_not_found")
        assert "secret of" not in answer.text

    assert (await served.client.get("/artifacts/first/report")).status_code == 200
    path.write_text(PAGE + " ")
    await refused()
    bring(first, b" " * (MOST_BYTES + 1))
    assert (await listed(served))["first"] is None
    await refused()
    bring(first, PAGE)
    path.unlink()
    await refused()
    path.symlink_to(secret)
    await refused()
    path.unlink()
    os.mkfifo(path)  # opening it would wait for a writer for ever
    await refused()


async def test_answers_share_the_bytes_of_few_reports_and_have_small_parts_of_them(
    served: Served, first: FakePredictor
) -> None:
    """However many clients ask for one, and take it slowly."""
    content, reports = os.urandom(MOST_BYTES), Reports()
    bring(first, content)
    held = reports.read(first.artifact)
    assert reports.read(first.artifact) is held
    leaving = LeavingClient("GET", "/artifacts/first/report")
    call = asyncio.ensure_future(leaving.call(served.app))
    await served.until(lambda: len(leaving.sent) == 2)
    assert (len(leaving.sent[1]["body"]), leaving.sent[1]["more_body"]) == (2**14, True)
    leaving.gone.set()
    await call
    for number in range(16):
        bring(first, f"report {number}")
        reports.read(first.artifact)
    bring(first, content)
    assert reports.read(first.artifact) is not held
