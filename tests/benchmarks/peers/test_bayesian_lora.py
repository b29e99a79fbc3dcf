"""bayesian-lora on a tiny float64 model: what it computes exactly, and where it leaves the dense truth, by how much."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("bayesian_lora", reason="the peers are not installed: make peers")

from benchmarks.peers.against_bayesian_lora import compare

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SEEDS = 60


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """The experiments that the benchmark writes down, over fewer seeds of the sampled labels."""
    return compare(seeds=SEEDS)


def test_jacobians_and_algebra_are_right(results: dict[str, Any]) -> None:
    assert results["jacobians"]["jacobian"] < 1e-12
    assert results["variance"]["own_curvature"] < 1e-5  # its covariance is accumulated in float32


def test_factors_shrink_with_the_batch_or_miss_the_number_of_rows(results: dict[str, Any]) -> None:
    # One seed samples the same labels whatever the batch, so the trace is 1 / batch to rounding.
    low, full = results["batch_size"]["low_rank"], results["batch_size"]["full_rank"]
    for size, ratio in low.items():
        assert ratio * int(size) == pytest.approx(low["1"], rel=1e-9)
        assert full[size] * results["rows"]["train"] == pytest.approx(low["1"], rel=1e-9)


def test_factors_are_the_last_tokens(results: dict[str, Any]) -> None:
    # No label enters the input factors. The others are of sampled labels: equal within four standard errors.
    assert results["input_factors"]["last"] < 1e-12
    assert min(results["input_factors"][tokens] for tokens in ("mean", "all")) > 0.1
    tokens = results["tokens"]
    standard_error = tokens["bayesian-lora"] * tokens["sampling"] / SEEDS**0.5
    assert tokens["bayesian-lora"] == pytest.approx(tokens["kfac_last"], abs=4 * standard_error)
    assert tokens["kfac_expand"] - tokens["bayesian-lora"] > 4 * standard_error
    assert tokens["ekfac"] == pytest.approx(1, rel=1e-9)


def test_truncated_factors_depend_on_the_order(results: dict[str, Any]) -> None:
    order = results["order"]
    assert min(order["reversed"], order["best_of_that_rank"]) > 0.2
    assert max(order["one_batch_is_best"], order["reversed_without_truncation"]) < 1e-10


def test_right_padding_reads_a_pad(results: dict[str, Any]) -> None:
    assert results["padding"]["left_over_alone"] == pytest.approx(1, abs=1e-6)
    assert results["padding"]["logit_change"] > 1


@pytest.mark.parametrize("prior", ["prior variance 1", "prior variance 100"])
def test_predictive_variance_moves_with_the_batch(results: dict[str, Any], prior: str) -> None:
    medians = [results["variance"][prior][f"batch {size}"]["median_ratio"] for size in (1, 2, 4, 8, 24)]
    assert medians == sorted(medians)
    assert medians[-1] > 1.3 * medians[0]


def test_readme_calls(results: dict[str, Any]) -> None:
    assert results["without_cholesky"]["median_ratio"] > 1.1
    assert results["forward_calls"]["whole_vocabulary"] > 1.1
    assert results["forward_calls"]["softmax_twice"] < 0.3
    assert results["one_row"].startswith("AssertionError")
    assert results["no_callback"] == "NameError: name 'cfg' is not defined"


def test_dropout_stays_on(results: dict[str, Any]) -> None:
    # Dropout at p scales the expected square of an input by 1 / (1 - p) = 1.11.
    assert results["dropout"]["input_trace_over_no_dropout"] == pytest.approx(1 / 0.9, rel=0.05)
    assert results["dropout"]["left_in_training_mode"]
    assert results["dropout"]["logit_change_between_two_calls"] > 0.01


def test_evidence_grows_without_end_as_the_prior_narrows(results: dict[str, Any]) -> None:
    evidence = results["evidence"]
    ends = (min(evidence["prior_variance"]), max(evidence["prior_variance"]))
    assert evidence["package_best_prior_variance"] == ends[0]
    assert evidence["dense_best_prior_variance"] not in ends
    assert max(evidence["package"]) > 0 > max(evidence["dense"])
