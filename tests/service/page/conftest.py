"""One browser, and one lively server over a fake predictor, for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Visit, chromium, visit
from job_calls import rows
from job_servers import submit_to
from playwright.sync_api import Browser
from server_process import fake_artifacts, fake_server

from laplora.artifact.report_page import REPORT_PAGE


# A module's, and not the session's: while it is there, its event loop is this thread's.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an artifact that brings a report, which would run scripts if it could."""
    folder = tmp_path_factory.mktemp("brought")
    page = folder / REPORT_PAGE
    page.parent.mkdir(exist_ok=True)
    page.write_text(
        "<!doctype html><html lang=en><head><title>r</title><style>h1 { color: #123456 }</style></head><h1>Ship it</h1>"
        "<p id=said>nothing ran</p><script>said.textContent = 'a script ran'</script>"
        "<img src=nothing onerror=\"said.textContent = 'a handler ran'\">"
    )
    return str(folder)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, reported: str) -> Iterator[str]:
    """The address of a server without keys: two artifacts, a job that is done, answers, and labels of some."""
    root: Path = fake_artifacts(tmp_path_factory.mktemp("root"), "fake", "riddles")
    fakes = {"FAKE_CHOICES": "riddles", "FAKE_REPORT": reported}
    with fake_server(root, "--also-load", "riddles", **fakes) as process, process.client() as client:
        asked = [{"text": str(1000 * i + 500)} for i in range(60)]
        ids = [p["prediction_id"] for p in client.post("/predict", json={"inputs": asked}).json()["predictions"]]
        items = [{"prediction_id": name, "label": ("negative", "positive")[i % 2]} for i, name in enumerate(ids)]
        assert client.post("/feedback", json={"items": items}).status_code == 200
        submit_to(client, rows(5))
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def visited(browser: Browser, address: str) -> Iterator[Visit]:
    with visit(browser, address) as visited:
        yield visited
