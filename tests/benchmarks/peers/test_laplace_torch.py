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
def found() -> dict[str, Any]:
    """The comparison that the benchmark writes down."""
    with quiet():
        return compare_tiny()


@pytest.mark.parametrize("pair", ["kfac_reduce, alone", "kfac_expand, equal lengths"])
def test_kfac_agrees_to_rounding(found: dict[str, Any], pair: str) -> None:
    # Sums over 24 rows in another order: a few units in the last place of float64.
    assert found[pair]["covariance"] < 1e-12
    assert found[pair]["evidence"] < 1e-12


@pytest.mark.parametrize("pair", ["diagonal, alone", "diagonal, padded"])
def test_diagonal_agrees_to_the_float32_that_it_is_stored_in(found: dict[str, Any], pair: str) -> None:
    # laplora rounds the diagonal to float32 as its file will: relative 6e-8 of each curvature.
    assert found[pair]["covariance"] < 6e-8
    assert found[pair]["evidence"] < 6e-8


@pytest.mark.parametrize("pair", ["exact, alone", "exact, padded"])
def test_exact_agrees_to_its_float32_columns(found: dict[str, Any], pair: str) -> None:
    # laplace-torch multiplies the GGN with a float32 identity: relative 6e-8 of the largest entries.
    assert found[pair]["covariance"] < 1e-6
    assert found[pair]["evidence"] < 1e-7


def test_kfac_expand_weighs_rows_by_their_tokens_here_and_equally_there(found: dict[str, Any]) -> None:
    assert 0.1 < found["kfac_expand, alone"]["covariance"] < 0.4
    assert 0.001 < found["kfac_expand, alone"]["evidence"] < 0.01


@pytest.mark.parametrize(("structure", "low"), [("kfac_expand", 1.08), ("kfac_reduce", 1.1)])
def test_padding_counts_as_data_there(found: dict[str, Any], structure: str, low: float) -> None:
    # Pads dilute the input factor, so the curvature is too small and the variance too large.
    assert low < found[f"{structure}, padded"]["median_ratio"] < 1.3
    assert found[f"{structure}, padded"]["evidence"] > 0.03


def test_padding_moves_nothing_here(found: dict[str, Any]) -> None:
    for structure, moved in found["padding moves laplora"].items():
        assert moved < 1e-12, structure


def test_gp_variance_can_be_negative(found: dict[str, Any]) -> None:
    # With a diagonal Hessian alone every variance is positive and below the exact one's double.
    assert found["gp"]["package"]["lowest_ratio"] < 0
    assert (
        0.2 < found["gp"]["diagonal_hessian"]["lowest_ratio"] < found["gp"]["diagonal_hessian"]["highest_ratio"] < 1.2
    )
