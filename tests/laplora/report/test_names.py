"""How methods are written."""

from __future__ import annotations

from laplora.report.names import display_name


def test_names() -> None:
    assert display_name("map") == "MAP"
    assert display_name("map_order_average") == "MAP, order average"
    assert display_name("laplace_evidence_group") == "Laplace (evidence, group)"
    assert display_name("something") == "something"
