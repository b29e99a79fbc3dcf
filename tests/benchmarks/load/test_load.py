"""The load benchmarks: what they call growth and a wrong answer; and that they run at a server."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import fake_artifacts, fake_server

from benchmarks import soak
from benchmarks.load import overload
from benchmarks.load.known_rows import TOLERANCE, Known
from benchmarks.load.open_arrivals import Outcome
from benchmarks.load.soak_report import verdict
from benchmarks.load.trend import Trend, trend
from benchmarks.load.watch import Sample


def series(per_hour: float, *, seed: int = 0, noise: float = 2.0, kept: float = 0.8) -> tuple[list[float], list[float]]:
    """Return 20 minutes of memory, a sample in 10 s: a line, and noise of which ``kept`` stays from one to the next."""
    rng, level, values = random.Random(seed), 0.0, []
    times = [10.0 * i for i in range(1, 121)]
    for time_s in times:
        level = kept * level + rng.gauss(0, noise)
        values.append(1000 + per_hour * time_s / 3600 + level)
    return times, values


def trend_of(per_hour: float, **options: Any) -> Trend:
    found = trend(*series(per_hour, **options))
    assert found is not None
    return found


def test_growth_is_told_from_noise_that_lingers() -> None:
    false, seen = (sum(trend_of(per_hour, seed=seed).grows for seed in range(200)) for per_hour in (0.0, 200.0))
    # One-sided error of a 95 % interval: 2.5 %, 5 of 200; 16 is what chance gives once in 10,000 times.
    assert false <= 16
    assert seen >= 190


@pytest.mark.parametrize(
    ("per_hour", "noise", "count", "said"),
    [(500, 2, 120, "grows"), (0, 0.2, 120, "is flat"), (0, 20, 120, "too short"), (0, 2, 3, "fewer than")],
)
def test_flat_is_said_only_where_growth_would_have_been_seen(
    per_hour: float, noise: float, count: int, said: str
) -> None:
    times, values = series(per_hour, noise=noise)
    lines = [Sample(t, v, 10, 5, 1.0, 1.0, 1.0, 1.0, 0, 0, "") for t, v in zip(times, values, strict=True)]
    assert said in verdict(lines[:count])


def test_wrong_lost_and_doubled_answers_are_counted() -> None:
    answers = {("x", "laplace"): [0.9, 0.1] * 2, ("y", "laplace"): [0.2, 0.8] * 2}

    def wrong(texts: str, *first: float) -> int:
        both = [dict(zip("ab", (one, 1 - one), strict=True)) for one in first]
        predictions = {"predictions": [{"map_probs": one, "probs": one} for one in both]}
        return Known(answers, {}).wrong(list(texts), "laplace", predictions)

    assert [wrong("xy", 0.9, 0.2), wrong("yx", 0.9, 0.2)] == [0, 2]
    assert [wrong("xy", 0.9), wrong("x", 0.9, 0.2), wrong("x", 0.9 - TOLERANCE - 0.01)] == [1, 1, 1]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = fake_artifacts(tmp_path_factory.mktemp("served"))
    flags = ["--max-queue-rows", "64", "--max-inputs", "32"]
    with fake_server(root, *flags) as process, process.client() as client:
        yield str(client.base_url).rstrip("/")


def test_a_short_soak_finds_nothing_wrong_and_leaves_a_log_and_a_page_in_the_scratch_folder(
    url: str, scratch: Path
) -> None:
    assert soak.main(["--url", url, "--minutes", "0.05", "--every-s", "0.6"]) == 0
    out = scratch / "load"
    lines = list(csv.DictReader((out / "soak.csv").read_text(encoding="utf-8").splitlines()))
    assert lines
    assert float(lines[-1]["rss_mb"]) > 10
    assert int(float(lines[-1]["open_files"])) > 3
    page = (out / "soak.md").read_text(encoding="utf-8")
    assert "| wrong answers | 0 |" in page
    for kind in ("predict", "hostile", "vanished", "garbage", "evaluate"):
        assert f"| {kind} | " in page


def test_a_short_overload_is_summed_up(url: str) -> None:
    # Whether what is asked is met is the machine's affair: the fake device has no limit, the clients do.
    one, two = overload.measure(url, overload.Plan(2, 0.12, 0.2), predictive="map")
    assert one.capacity_per_s > 0 < two.twice.answered_per_s
    assert (one.disorder, two.twice.otherwise) == (0, 0)


def test_percentiles_are_from_when_a_request_was_meant_or_sent() -> None:
    """A median within the limit is not enough: 94 of 100 are refused fast, 6 are not."""
    refused = [Outcome(0.0, 1.0, 1.0 + took, 429, 1.0) for took in [0.002] * 94 + [0.086] * 6]
    answered = [Outcome(0.0, 0.5, 1.0, 200, None)] * 95
    load = overload.summary(10.0, [*refused, *answered, Outcome(0, 0, 1, 503, 5.0), Outcome(0, 0, 1, 429, None)])
    assert (load.answered_per_s, load.latency_s) == (9.5, 1.0)
    assert (load.refused, load.told, load.otherwise) == (101, 100, 1)
    assert load.refusal_ms == pytest.approx(86.0)
