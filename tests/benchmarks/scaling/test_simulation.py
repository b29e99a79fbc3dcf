"""The simulation where the answer is known: by counting, by arithmetic, and by queueing theory."""

from __future__ import annotations

import statistics

import pytest

from benchmarks.load.open_arrivals import poisson_times
from benchmarks.scaling.cells import simulated_cell
from benchmarks.scaling.costs import DeviceCost, HostCost, device_points, fit_line
from benchmarks.scaling.simulation import Arrival, Cluster, simulate, simulate_clients

FREE = HostCost(0.0, 0.0, 0.0)
CLIENTS = [(f"caller {k}", [10]) for k in range(40)]


def test_a_request_alone_takes_what_host_way_and_batch_take() -> None:
    cluster = Cluster(DeviceCost(0.01, 0.001), HostCost(0.002, 0.0, 0.0), replicas=2, hop_s=0.003)
    arrivals = [Arrival(float(k), "a", 20) for k in range(5)]
    for answer in simulate(cluster, arrivals):
        assert answer.answered
        assert answer.latency_s == pytest.approx(0.002 + 2 * 0.003 + 0.01 + 20 * 0.001)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.85])
def test_rows_that_run_alone_wait_as_long_as_theory_says(load: float) -> None:
    """One server, Poisson arrivals, equal service: Pollaczek and Khinchine's mean wait."""
    cluster = Cluster(DeviceCost(0.1, 0.0), FREE, token_budget=1, queue_rows=100_000, client_share=1.0)
    times = poisson_times(load / 0.1, 1500.0, seed=3)
    answers = simulate(cluster, [Arrival(at, "a", 5) for at in times])
    wait = statistics.mean(answer.latency_s for answer in answers) - 0.1
    assert wait == pytest.approx(0.1 * load / (2 * (1 - load)), rel=0.1)


def test_the_capacity_is_full_batches_one_after_the_other() -> None:
    device = DeviceCost(0.01, 0.001)  # 10 rows of 10 tokens: 0.11 s
    one, two = (simulate_clients(Cluster(device, FREE, replicas=n, token_budget=100), CLIENTS, 20.0) for n in (1, 2))
    assert one == pytest.approx(10 / 0.11, rel=0.02)
    assert two == pytest.approx(2 * one, rel=0.02)


def test_a_host_on_the_devices_core_takes_its_time_from_it() -> None:
    device, host = DeviceCost(0.0, 0.001), HostCost(0.005, 0.0, 0.0)
    apart, shared = (
        simulate_clients(Cluster(device, host, shared_core=core, token_budget=100), CLIENTS, 20.0)
        for core in (False, True)
    )
    assert apart == pytest.approx(1 / 0.01, rel=0.02)
    assert shared == pytest.approx(1 / 0.015, rel=0.02)


def test_an_event_loop_that_is_busy_limits_any_number_of_devices() -> None:
    cluster = Cluster(DeviceCost(0.0, 0.0001), HostCost(0.01, 0.0, 0.0), replicas=8)
    assert simulate_clients(cluster, CLIENTS, 30.0) == pytest.approx(100, rel=0.02)


def test_what_finds_no_room_is_refused_and_everything_has_an_answer() -> None:
    cluster = Cluster(DeviceCost(0.1, 0.0), FREE, token_budget=1, queue_rows=8, client_share=1.0)
    arrivals = [Arrival(0.0, "a", 5) for _ in range(30)]
    answers = simulate(cluster, arrivals)
    assert len(answers) == 30
    assert sum(answer.answered for answer in answers) == 1 + 8  # one is on the device, and the others wait
    assert all(answer.latency_s == 0 for answer in answers if not answer.answered)
    assert max(answer.latency_s for answer in answers) == pytest.approx(0.9)


def test_a_cell_is_limited_by_its_devices_and_then_by_its_event_loop() -> None:
    few, many = (simulated_cell(n, device_per_s=100.0, tokens=128, request_s=0.004) for n in (1, 8))
    assert (few.limit, many.limit) == ("devices", "the event loop")
    for cell in (few, many):
        assert cell.saturated_per_s == pytest.approx(cell.arithmetic_per_s, rel=0.05)
        assert all(0 < p50_s < p99_s for p50_s, p99_s in zip(cell.p50_s, cell.p99_s, strict=True))
    assert many.arithmetic_per_s == 250


def test_costs_are_the_line_through_the_times() -> None:
    points = [(tokens, 0.02 + 0.003 * tokens) for tokens in (16, 64, 128, 512)]
    found = fit_line(points)
    assert [found.base_s, found.token_s] == pytest.approx([0.02, 0.003])
    assert found.of(100) == pytest.approx(0.32)
    below = fit_line([(16, 0.01), (512, 0.6)])
    assert below.base_s == 0  # never below nothing

    def squares(slope: float) -> float:
        return sum((slope * tokens / seconds - 1) ** 2 for tokens, seconds in ((16, 0.01), (512, 0.6)))

    assert all(squares(below.token_s) < squares(below.token_s * factor) for factor in (0.99, 1.01))


def test_batches_are_timed_in_turns_by_the_processor() -> None:
    asked: list[tuple[int, int]] = []

    def run(rows: int, tokens: int) -> None:
        asked.append((rows, tokens))
        sum(range(2000 * rows * tokens))

    points = device_points(run, turns=2, sizes=((1, 10), (4, 100)))
    assert asked == [(1, 10), (4, 100)] * 3
    assert [tokens for tokens, _ in points] == [10, 400]
    assert points[0][1] < points[1][1]
