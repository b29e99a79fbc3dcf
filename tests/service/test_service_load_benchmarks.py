"""The load benchmarks: what they call growth, a wrong answer and a kept promise; and that they run at a server."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import server_process

from benchmarks import open_loop, soak
from benchmarks.load.known_rows import TOLERANCE, Known
from benchmarks.load.open_arrivals import Outcome, poisson_times
from benchmarks.load.soak_report import verdict
from benchmarks.load.tally import quantile
from benchmarks.load.trend import FEWEST, trend
from benchmarks.load.watch import Sample

FAKE_SERVER = Path(__file__).with_name("fake_server.py")


def series(per_hour: float, *, seed: int = 0, noise: float = 2.0, kept: float = 0.8) -> tuple[list[float], list[float]]:
    """Return 20 minutes of memory, a sample in 10 s: a line, and noise of which ``kept`` stays from one to the next."""
    rng, level, values = random.Random(seed), 0.0, []
    times = [10.0 * i for i in range(1, 121)]
    for time_s in times:
        level = kept * level + rng.gauss(0, noise)
        values.append(1000 + per_hour * time_s / 3600 + level)
    return times, values


def test_growth_is_told_from_noise_that_lingers() -> None:
    false = sum((found := trend(*series(0.0, seed=seed))) is not None and found.grows for seed in range(200))
    seen = sum((found := trend(*series(200.0, seed=seed))) is not None and found.grows for seed in range(200))
    # One-sided error of a 95 % interval: 2.5 %, 5 of 200; 16 is what chance gives once in 10,000 times.
    assert false <= 16
    assert seen >= 190


def test_a_line_is_its_own_trend_and_few_points_have_none() -> None:
    times, values = series(60.0, noise=0.0)
    found = trend(times, values)
    assert found is not None
    assert found.per_hour == pytest.approx(60)
    assert trend(times[: FEWEST - 1], values[: FEWEST - 1]) is None


def samples(times: list[float], values: list[float]) -> list[Sample]:
    return [Sample(t, v, 10, 5, 1.0, 1.0, 1.0, 1.0, 0, 0, "") for t, v in zip(times, values, strict=True)]


def test_flat_is_said_only_where_growth_would_have_been_seen() -> None:
    assert "grows" in verdict(samples(*series(500.0)))
    assert "is flat" in verdict(samples(*series(0.0, noise=0.2)))
    assert "too short" in verdict(samples(*series(0.0, noise=20.0)))
    assert "not watched" in verdict(samples(*series(0.0))[:3])


def answer(*probs: float, by: str = "laplace") -> dict[str, object]:
    both = dict(zip("ab", probs, strict=True))
    return {"map_probs": both, "probs": both, "answered_by": by}


def test_wrong_lost_and_doubled_answers_are_counted() -> None:
    known = Known(
        ("x", "y"),
        {("x", "laplace"): [0.9, 0.1] * 2, ("x", "fast"): [0.7, 0.3] * 2, ("y", "laplace"): [0.2, 0.8] * 2},
        {},
        ("fast", "laplace"),
    )
    right = {"predictions": [answer(0.9, 0.1), answer(0.2, 0.8)]}
    assert known.wrong(["x", "y"], "laplace", right) == 0
    assert known.wrong(["y", "x"], "laplace", right) == 2
    assert known.wrong(["x", "y"], "laplace", {"predictions": right["predictions"][:1]}) == 1
    assert known.wrong(["x"], "laplace", right) == 1
    moved = 0.9 - TOLERANCE - 0.01
    assert known.wrong(["x"], "laplace", {"predictions": [answer(moved, 1 - moved)]}) == 1
    # Handed over by fast: compared with what laplace says.
    assert known.wrong(["x"], "fast", {"predictions": [answer(0.9, 0.1)]}) == 0
    assert known.wrong(["x"], "fast", {"predictions": [answer(0.9, 0.1, by="fast")]}) == 1


def test_arrivals_are_in_order_and_of_their_rate() -> None:
    times = poisson_times(50.0, 100.0, seed=1)
    assert times == sorted(times)
    assert times[-1] < 100
    # Five standard deviations of a Poisson count of 5,000.
    assert abs(len(times) - 5000) <= 5 * 5000**0.5


def run_of(
    answered_s: list[float], refused: int, *, retry_after_s: float | None = 2.0, again: int = 200
) -> open_loop.Run:
    outcomes = [Outcome(0.0, 0.1, late, 200, None) for late in answered_s]
    outcomes += [Outcome(0.0, 0.1, 0.2, 429, retry_after_s)] * refused
    return open_loop.Run(2.0, 10.0, outcomes, [Outcome(0.0, 0.0, 1.0, again, None)])


@pytest.mark.parametrize(
    ("run", "broken"),
    [
        (run_of([5.0] * 100, 100), None),
        (run_of([5.0] * 50, 150), 0),
        (run_of([20.0] * 400, 100), 1),
        (run_of([5.0] * 100, 100, retry_after_s=None), 2),
        (run_of([5.0] * 100, 100, again=429), 3),
        (open_loop.Run(2.0, 10.0, [*run_of([5.0] * 100, 9).outcomes, Outcome(0, 0, 1, 503, 5.0)], []), 4),
    ],
)
def test_each_promise_can_be_broken(run: open_loop.Run, broken: int | None) -> None:
    """A capacity of 10 a second: a queue of 36 rows and the batches before it take 10 s."""
    kept = [kept for _, kept in open_loop.promises(10.0, run, 36)]
    assert [i for i, ok in enumerate(kept) if not ok] == ([] if broken is None else [broken])


def test_latency_counts_from_the_time_a_request_was_meant_for() -> None:
    assert Outcome(meant=1.0, sent=3.0, done=3.5, status=200, retry_after_s=None).latency_s == 2.5
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("artifacts")
    (root / "fake").mkdir()
    (root / "fake" / "manifest.json").write_text("{}")
    flags = ["--artifact", "fake", "--artifacts-root", str(root), "--max-queue-rows", "64", "--max-inputs", "32"]
    with server_process([str(FAKE_SERVER), *flags]) as process, process.client() as client:
        yield str(client.base_url).rstrip("/")


def test_a_short_soak_finds_nothing_wrong_and_leaves_a_log_a_page_and_a_picture(url: str, tmp_path: Path) -> None:
    assert soak.main(["--url", url, "--minutes", "0.05", "--every-s", "0.6", "--out", str(tmp_path)]) == 0
    lines = list(csv.DictReader((tmp_path / "soak.csv").read_text(encoding="utf-8").splitlines()))
    assert len(lines) >= 2
    assert float(lines[-1]["rss_mb"]) > 10
    assert int(float(lines[-1]["open_files"])) > 3
    page = (tmp_path / "soak.md").read_text(encoding="utf-8")
    assert "| wrong answers | 0 |" in page
    for kind in ("predict", "hostile", "vanished", "garbage", "evaluate"):
        assert f"| {kind} | " in page
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_a_short_open_loop_writes_its_table(url: str, tmp_path: Path) -> None:
    # Whether its promises are kept is the machine's affair: the fake device has no limit, the clients do.
    open_loop.main(["--url", url, "--seconds", "0.5", "--queue-rows", "64", "--out", str(tmp_path)])
    page = (tmp_path / "open_loop.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][-3:] == ["0.5", "1", "2"]
