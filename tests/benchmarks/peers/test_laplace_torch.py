"""laplace-torch on a tiny float64 model: to rounding where it is the same posterior, elsewhere how far apart."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("laplace", reason="the peers are not installed: make peers")
pytest.importorskip("curvlinops", reason="the peers are not installed: make peers")

from benchmarks.peers.against_laplace import compare_tiny
from benchmarks.peers.laplace_torch_calls import quiet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    """The comparison that the benchmark writes down."""
    with quiet():
        return compare_tiny()


@pytest.mark.parametrize(
    ("pair", "covariance", "evidence"),
    [
        # Sums over 24 rows in another order: a few units in the last place of float64.
        ("kfac_reduce, alone", 1e-12, 1e-12),
        ("kfac_expand, equal lengths", 1e-12, 1e-12),
        # laplora rounds the diagonal to float32: relative 6e-8 of each curvature.
        ("diagonal, alone", 6e-8, 6e-8),
        ("diagonal, padded", 6e-8, 6e-8),
        # laplace-torch multiplies the GGN with a float32 identity: relative 6e-8 of the largest entries.
        ("exact, alone", 1e-6, 1e-7),
        ("exact, padded", 1e-6, 1e-7),
    ],
)
def test_the_same_posterior_agrees_to_rounding(
    tiny: dict[str, Any], pair: str, covariance: float, evidence: float
) -> None:
    assert tiny[pair]["covariance"] < covariance
    assert tiny[pair]["evidence"] < evidence


def test_kfac_expand_weighs_rows_by_their_tokens_here_and_equally_there(tiny: dict[str, Any]) -> None:
    assert 0.1 < tiny["kfac_expand, alone"]["covariance"] < 0.4
    assert 0.001 < tiny["kfac_expand, alone"]["evidence"] < 0.01


@pytest.mark.parametrize(("structure", "low"), [("kfac_expand", 1.08), ("kfac_reduce", 1.1)])
def test_padding_counts_as_data_there_and_moves_nothing_here(tiny: dict[str, Any], structure: str, low: float) -> None:
    # Pads dilute the input factor, so the curvature is too small and the variance too large.
    assert low < tiny[f"{structure}, padded"]["median_ratio"] < 1.3
    assert tiny[f"{structure}, padded"]["evidence"] > 0.03
    assert tiny["padding moves laplora"][structure] < 1e-12


def test_gp_variance_can_be_negative(tiny: dict[str, Any]) -> None:
    # With a diagonal Hessian alone every variance is positive and below the exact one's double.
    assert tiny["gp"]["package"]["lowest_ratio"] < 0
    alone = tiny["gp"]["diagonal_hessian"]
    assert 0.2 < alone["lowest_ratio"] < alone["highest_ratio"] < 1.2
