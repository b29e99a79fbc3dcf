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
    [("", (), 6), ("0", (), 6), ("1", (), 12), ("", ("-m", "exhaustive"), 6), ("", ("-m", "not gpu"), 6)],
)
def test_none_by_default_and_all_where_asked(
    asked: str, words: tuple[str, ...], passed: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert passed_of(asked, words, pytester, monkeypatch) == passed


def test_each_is_in_one_third(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(passed_of(f"{third}/3", (), pytester, monkeypatch) - 6 for third in (1, 2, 3)) == 6
    assert passed_of("4/3", (), pytester, monkeypatch) == 0


def passed_of(asked: str, words: tuple[str, ...], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many of six files' tests pass, half of them exhaustive."""
    pytester.makeini("[pytest]\nmarkers =\n    exhaustive\n    gpu")
    pytester.makepyfile(**{f"test_{name}": MODULE for name in "abcdef"})
    monkeypatch.setattr(exhaustive, "ASKED", asked)
    return pytester.runpytest_inprocess("-p", "exhaustive", *words).parseoutcomes().get("passed", 0)
