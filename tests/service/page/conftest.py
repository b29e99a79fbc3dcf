"""One browser, and one server over a fake predictor, for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Visit, chromium, ready, visit
from playwright.sync_api import Browser
from server_process import fake_artifacts, fake_server


# A module's, and not the session's: while it is there, its event loop is this thread's.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a ready server without keys."""
    root: Path = fake_artifacts(tmp_path_factory.mktemp("root"))
    with ready(fake_server(root)) as address:
        yield address


@pytest.fixture
def visited(browser: Browser, address: str) -> Iterator[Visit]:
    with visit(browser, address) as visited:
        yield visited
