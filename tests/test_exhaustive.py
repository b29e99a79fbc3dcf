"""Exhaustive tests are left out by default, run all together, and each in one of three thirds."""

from __future__ import annotations

import exhaustive
import pytest

pytest_plugins = ["pytester"]

MODULE = """
import pytest

@pytest.mark.exhaustive
def test_of_everything():
    pass

def test_of_something():
    pass
"""


@pytest.mark.parametrize(
    ("asked", "words", "passed"),
    [("", (), 6), ("1", (), 12), ("", ("-m", "exhaustive"), 6), ("", ("-m", "not gpu"), 6), ("4/3", (), 0)],
)
def test_none_by_default_and_all_where_asked(
    asked: str, words: tuple[str, ...], passed: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six files' tests half are exhaustive."""
    pytester.makeini("[pytest]\nmarkers =\n    exhaustive\n    gpu")
    pytester.makepyfile(**{f"test_{name}": MODULE for name in "abcdef"})
    monkeypatch.setattr(exhaustive, "ASKED", asked)
    outcomes = pytester.runpytest_inprocess("-p", "exhaustive", *words).parseoutcomes()
    assert outcomes.get("passed", 0) == passed


def test_each_is_in_one_third() -> None:
    for test in map("tests/test_{}.py::test".format, range(20)):
        assert sum(exhaustive.runs(test, f"{third}/3") for third in (1, 2, 3)) == 1
