"""How figures are timed, judged and kept, and the page that is made of them."""

from __future__ import annotations

import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.harness import page as results_page
from benchmarks.harness import provenance
from benchmarks.harness.record import Conditions, Record, keep, read
from benchmarks.harness.timing import Ratio, in_turns, ratio

MEASURED = {"date": "2026-01-01", "commit": "abc", "command": "c", "threads": "2", "versions": "torch 2"}
HERE = Conditions("a processor, 2 cores", MEASURED)


def test_functions_take_turns_and_the_first_turn_does_not_count() -> None:
    called = []
    times = in_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3)
    assert called == ["a", "b"] * 4
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_within_a_turn() -> None:
    """A machine that was three times slower in the second turn changes no ratio."""
    found = ratio({"a": [2.0, 6.0, 2.2], "b": [1.0, 3.0, 1.0]}, "a", "b")
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.2)


@pytest.mark.parametrize(
    ("side", "figures", "expected"),
    [
        ("at most", (1.9, 1.8, 2.1), "open"),
        ("at most", (1.9, 1.8, 2.0), "open"),
        ("at most", (1.9, 1.8, 1.99), "met"),
        ("at most", (2.1, 2.01, 2.2), "missed"),
        ("at least", (2.1, 2.01, 2.2), "met"),
        ("at least", (2.0, 2.0, 2.0), "met"),
        (None, (2.0, 1.0, 3.0), None),
    ],
)
def test_a_target_is_met_or_missed_where_every_turn_says_so(
    side: str | None, figures: tuple[float, float, float], expected: str | None
) -> None:
    limit = None if side is None else 2.0
    record = HERE.record("p: w", Ratio(*figures), "b", limit=limit, side=side or "at most")  # type: ignore[arg-type]
    assert results_page.verdict(asdict(record)) == expected


def test_targets_are_counted_apart_from_what_was_measured_and_open_ones_keep_the_medians_word(tmp_path: Path) -> None:
    records = [
        HERE.record("p: overhead", Ratio(3.58, -2.15, 23.8), "ms", limit=5.0),
        HERE.record("p: answer", Ratio(2.21, 2.07, 2.46), "b", limit=2.2),
        HERE.record("p: sure", Ratio(1, 0.9, 1.1), "b", limit=2.2),
        HERE.record("p: over", Ratio(2, 2, 2), "b", limit=1.0),
        HERE.record("g: plain", Ratio(2, 2, 2), "ms"),
    ]
    assert list(keep(records, tmp_path)) == records
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "Met in every turn: 1. Missed in every turn: 1. Open: 2 (by the median 1 met, 1 missed)." in page
    assert "| overhead | 3.58 ms | -2.15–23.8 | ≤5 | open (met) |" in page
    assert "| over | 2 |  | ≤1 | **missed** |" in page
    assert "| plain | 2 |  |  |  |" in page


def figure(name: str, value: float, where: Conditions = HERE) -> Record:
    return where.record(name, Ratio(value, value, value), "b")


def test_a_figure_takes_the_place_of_the_same_on_the_same_hardware(tmp_path: Path) -> None:
    def values() -> list[tuple[str, str, float]]:
        return [(r["name"], r["hardware"], r["value"]) for r in read(tmp_path)]

    elsewhere = Conditions("another, 8 cores", HERE.measured)
    first = [figure(name, 1) for name in ("p: w", "p: old", "q: other")]
    assert list(keep(first, tmp_path)) == first
    assert len(list(keep([figure("p: w", 3, elsewhere)], tmp_path))) == 1
    half = keep([figure("p: w", 4)], tmp_path)
    next(half)
    others = [("p: old", HERE.hardware, 1), ("q: other", HERE.hardware, 1), ("p: w", elsewhere.hardware, 3)]
    assert values() == [("p: w", HERE.hardware, 4), *others], "a run that ends early leaves the rest"
    assert list(half) == []
    assert values() == [("p: w", HERE.hardware, 4), *others[1:]], "what is measured no more is gone"


def test_a_commit_says_whether_its_code_was_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        names = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True)

    assert provenance.commit(tmp_path) == "unknown"
    git("init", "-q")
    for name in ("a.py", "page.md"):
        (tmp_path / name).write_text("one")
    git("add", "-A")
    git("commit", "-q", "-m", "m")
    head = provenance.commit(tmp_path)
    assert len(head) == 10
    (tmp_path / "page.md").write_text("two")  # what a run writes is no change of what it measures
    assert provenance.commit(tmp_path) == head
    (tmp_path / "a.py").write_text("two")
    assert provenance.commit(tmp_path) == f"{head} with changes"
