"""The markers ``real`` and ``process``: set by what a test's code reaches, and refused to be forgotten.

A test is ``real`` where it, a helper or one of its fixtures fetches the base model or the data wheel, and ``process``
where one of them starts a process. A test without either marker that does so all the same fails: an audit hook of
Python sees processes start and files of the cache open.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from laplora.models.offline import ensure_data_wheel, ensure_encoder, ensure_model
from laplora.models.wheels import cache_root, ensure_wheel

#: What the code of a test with a marker reaches.
REACHED = {
    "real": (ensure_model, ensure_data_wheel, ensure_encoder),
    "process": (subprocess, multiprocessing, ensure_wheel),
}
PROCESS_EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
TESTS = str(Path(__file__).parent)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test. Among workers that share the modules out, those that take long go first: all end together."""
    seen: dict[int, set[str]] = {}
    for item in items:
        if isinstance(item, pytest.Function):
            definitions = item._fixtureinfo.name2fixturedefs.values()
            for function in (item.function, *(d.func for of_name in definitions for d in of_name)):
                for marker in markers_of(function, seen):
                    item.add_marker(marker)
        if config.getoption("reruns", None) and not item.get_closest_marker("process"):
            item.add_marker(pytest.mark.flaky(reruns=0))  # what computes fails for a reason
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if any(item.get_closest_marker(name) for name in REACHED))
        items.sort(key=lambda item: slow[item.path] == 0)


def markers_of(value: object, seen: dict[int, set[str]]) -> set[str]:
    """Return the markers that a function or class of the tests needs; ``seen`` keeps them by the object's id."""
    if id(value) in seen:
        return seen[id(value)]
    found = seen[id(value)] = {marker for marker, reached in REACHED.items() if any(value is r for r in reached)}
    if isinstance(value, type) and value.__module__ in sys.modules and in_tests(sys.modules[value.__module__]):
        for member in vars(value).values():
            found |= markers_of(getattr(member, "__func__", getattr(member, "fget", member)), seen)
    function = getattr(value, "__wrapped__", value)
    if isinstance(function, FunctionType) and function.__code__.co_filename.startswith(TESTS):
        for name in names_in(function.__code__):
            found |= markers_of(function.__globals__.get(name), seen)
    return found


def in_tests(module: Any) -> bool:
    return str(getattr(module, "__file__", "")).startswith(TESTS)


def names_in(code: CodeType) -> set[str]:
    """Return the global names and attributes that code and the functions within it use."""
    inner = (names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


class Guard:
    """Fails the running test where it does what only tests with a marker do."""

    item: pytest.Item | None = None
    starts = PROCESS_EVENTS  # here too: at the interpreter's end this module has nothing any more
    cache = f"{cache_root()}{os.sep}"

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See an event of Python's audit."""
        if event in self.starts and arguments[0] != "fc-list":  # matplotlib's list of fonts, once on a new machine
            self.refuse(f"starts a process ({event})")
        elif event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(self.cache):
            self.refuse(f"opens {arguments[0]}")

    def refuse(self, what: str) -> None:
        """Fail the running test unless it has a marker."""
        item = self.item
        if item is not None and not any(item.get_closest_marker(name) for name in ("real", "process", "gpu")):
            pytest.fail(f"{item.nodeid} {what}: it needs the marker 'real' or 'process'")


guard = Guard()


def pytest_configure() -> None:
    """Watch this process."""
    sys.addaudithook(guard)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Watch this test."""
    before, guard.item = guard.item, item
    try:
        return (yield)
    finally:
        guard.item = before
