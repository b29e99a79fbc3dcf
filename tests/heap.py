"""What is imported before the tests run is left out of collections of garbage: each went through all of it, 0.5 s.

A server leaves its models out too, and for that takes everything in again. In the process of the tests its functions
collect only, but for those with the fixture ``whole_heap``.
"""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


@contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """Limit what the process may take."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let the process take 1 GiB more at most while a test runs: a claim of gigabytes does not fit."""
    if sys.platform != "linux":
        pytest.skip("needs Linux's limit of a process's memory")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with limited(resource.RLIMIT_AS, size + 2**30):
        yield
