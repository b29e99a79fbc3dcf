"""What is imported before the tests run is left out of collections of garbage: each went through all of it, 0.5 s.

A server leaves its models out too, and for that takes everything in again. In the process of the tests its functions
collect only, but for those with the fixture ``whole_heap``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

import service.process

COLLECTS_ONLY = SimpleNamespace(
    collect=gc.collect, freeze=lambda: None, unfreeze=lambda: None, get_freeze_count=lambda: 0
)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave out what is there once every test's module is imported."""
    if not session.config.option.collectonly:
        service.process.gc = COLLECTS_ONLY  # type: ignore[assignment, attr-defined]
        gc.collect()
        gc.freeze()


@pytest.fixture
def whole_heap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything is collected, and what the server leaves out is left out, in this test."""
    monkeypatch.setattr("service.process.gc", gc)
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()
