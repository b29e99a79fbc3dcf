"""What a card holds: the page has what the count says."""

from __future__ import annotations

import pytest

from benchmarks import cards


@pytest.mark.slow
def test_the_page_has_what_the_count_says() -> None:
    """One model of the four, the quickest to count: every line of its tables."""
    found = {"phi2": cards.counted("phi2")}
    page = cards.PAGE.read_text(encoding="utf-8")
    for table in (cards.memory_table(found), cards.cards_table(found)):
        for line in table.splitlines():
            assert line in page, "run python -m benchmarks.cards --publish"
    few, most = (cards.most_tokens(found["phi2"], card) for card in ("24 GB", "80 GB"))
    assert 6 * cards.SHORT < few < most
    short, long = found["phi2"].short, found["phi2"].long
    each = (long.training_bytes - short.training_bytes) / (6 * (cards.LONG - cards.SHORT))
    held = short.model_bytes + short.training_bytes + each * (few - 6 * cards.SHORT)
    assert held == pytest.approx(cards.usable_bytes("24 GB"), rel=1e-3)
