"""How much of what takes minutes and seldom breaks is run: none, a third, or all, by LAPLORA_EXHAUSTIVE.

Tests with the marker ``exhaustive`` are deselected unless the variable is ``1`` (all of them, and all that other tests
draw) or ``1/3``, ``2/3`` or ``3/3`` (of this third). An expression for ``-m`` with the marker decides instead.
"""

from __future__ import annotations

import faulthandler
import os
import re
import zlib

import pytest

ASKED = os.environ.get("LAPLORA_EXHAUSTIVE", "")
#: After which an exhaustive test fails that does not say so itself.
LIMIT_S = 600


def drawn(examples: int) -> int:
    """Return how many examples are drawn of so many: a quarter, or all where everything is run."""
    return examples if ASKED == "1" else examples // 4


def third_of(test: str) -> int:
    """Return which third an exhaustive test is in, by its name alone: 1, 2 or 3."""
    return zlib.crc32(test.encode()) % 3 + 1


def runs(test: str, asked: str) -> bool:
    """Return whether an exhaustive test runs for a value of the variable; UsageError for an unknown value."""
    if asked in ("", "0", "1"):
        return asked == "1"
    if not re.fullmatch("[123]/3", asked):
        raise pytest.UsageError(f"LAPLORA_EXHAUSTIVE is 1, 1/3, 2/3 or 3/3, or is not set, not {asked!r}")
    return third_of(test) == int(asked[0])


def pytest_report_header() -> str:
    """Say what is run."""
    what = {"": "none, make test-exhaustive runs them", "0": "none", "1": "all"}.get(ASKED, f"third {ASKED}")
    return f"exhaustive tests: {what}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the exhaustive tests that are not run; those that are have more time."""
    for item in items:
        if item.get_closest_marker("exhaustive") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LIMIT_S))
    if "exhaustive" in config.option.markexpr:
        return
    left = [item for item in items if item.get_closest_marker("exhaustive") and not runs(item.nodeid, ASKED)]
    if left:
        config.hook.pytest_deselected(items=left)
        gone = set(map(id, left))
        items[:] = [item for item in items if id(item) not in gone]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let an exhaustive test have its time: what ends the process of a test that hangs counts less."""
    if item.get_closest_marker("exhaustive"):
        faulthandler.cancel_dump_traceback_later()
