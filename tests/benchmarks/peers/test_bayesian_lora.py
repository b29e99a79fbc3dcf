"""bayesian-lora on a tiny float64 model: what it computes exactly, and where it leaves the dense truth, by how much."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("bayesian_lora", reason="the peers are not installed: make peers")

from benchmarks.peers.against_bayesian_lora import compare

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


SEEDS = 60


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The experiments that the benchmark writes down, over fewer seeds of the sampled labels."""
    return compare(seeds=SEEDS)


def test_jacobians_and_algebra_are_right(found: dict[str, Any]) -> None:
    assert found["jacobians"]["jacobian"] < 1e-12
    assert found["variance"]["own_curvature"] < 1e-5  # its covariance is accumulated in float32


def test_low_rank_factors_shrink_with_the_batch(found: dict[str, Any]) -> None:
    # One seed samples the same labels whatever the batch, so the trace is 1 / batch to rounding.
    ratios = found["batch_size"]["low_rank"]
    for size, ratio in ratios.items():
        assert ratio * int(size) == pytest.approx(ratios["1"], rel=1e-9)


def test_full_rank_factors_miss_the_number_of_rows(found: dict[str, Any]) -> None:
    low, full = found["batch_size"]["low_rank"], found["batch_size"]["full_rank"]
    for ratio in full.values():
        assert ratio * found["rows"]["train"] == pytest.approx(low["1"], rel=1e-9)


def test_factors_are_the_last_tokens(found: dict[str, Any]) -> None:
    # No label enters the input factors. The others are of sampled labels: equal within four standard errors.
    assert found["input_factors"]["last"] < 1e-12
    assert found["input_factors"]["mean"] > 0.1
    assert found["input_factors"]["all"] > 0.1
    tokens = found["tokens"]
    standard_error = tokens["bayesian-lora"] * tokens["sampling"] / SEEDS**0.5
    assert tokens["bayesian-lora"] == pytest.approx(tokens["kfac_last"], abs=4 * standard_error)
    assert tokens["kfac_expand"] - tokens["bayesian-lora"] > 4 * standard_error
    assert tokens["ekfac"] == pytest.approx(1, rel=1e-9)


def test_truncated_factors_depend_on_the_order(found: dict[str, Any]) -> None:
    assert found["order"]["reversed"] > 0.2
    assert found["order"]["best_of_that_rank"] > 0.2
    assert found["order"]["one_batch_is_best"] < 1e-10
    assert found["order"]["reversed_without_truncation"] < 1e-10


def test_right_padding_reads_a_pad(found: dict[str, Any]) -> None:
    assert found["padding"]["left_over_alone"] == pytest.approx(1, abs=1e-6)
    assert found["padding"]["logit_change"] > 1


def test_predictive_variance_moves_with_the_batch(found: dict[str, Any]) -> None:
    for name, ratios in found["variance"].items():
        if name == "own_curvature":
            continue
        medians = [ratios[f"batch {size}"]["median_ratio"] for size in (1, 2, 4, 8, 24)]
        assert medians == sorted(medians), name
        assert medians[-1] > 1.3 * medians[0]


def test_readme_calls(found: dict[str, Any]) -> None:
    assert found["without_cholesky"]["median_ratio"] > 1.1
    assert found["forward_calls"]["whole_vocabulary"] > 1.1
    assert found["forward_calls"]["softmax_twice"] < 0.3
    assert found["one_row"].startswith("AssertionError")
    assert found["no_callback"] == "NameError: name 'cfg' is not defined"


def test_dropout_stays_on(found: dict[str, Any]) -> None:
    # Dropout at p scales the expected square of an input by 1 / (1 - p) = 1.11.
    assert found["dropout"]["input_trace_over_no_dropout"] == pytest.approx(1 / 0.9, rel=0.05)
    assert found["dropout"]["left_in_training_mode"]
    assert found["dropout"]["logit_change_between_two_calls"] > 0.01


def test_evidence_grows_without_end_as_the_prior_narrows(found: dict[str, Any]) -> None:
    evidence = found["evidence"]
    assert evidence["package_best_prior_variance"] == min(evidence["prior_variance"])
    assert evidence["dense_best_prior_variance"] not in (
        min(evidence["prior_variance"]),
        max(evidence["prior_variance"]),
    )
    assert max(evidence["package"]) > 0 > max(evidence["dense"])
