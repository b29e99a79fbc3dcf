"""What a card holds: the page has what the count says, and the count's own arithmetic."""

from __future__ import annotations

import pytest

from benchmarks import cards
from training.estimate import CARDS


@pytest.mark.slow
def test_the_page_has_what_the_count_says() -> None:
    """One model of the four, the quickest to count: every line of its tables."""
    found = {"phi2": cards.counted("phi2")}
    page = cards.PAGE.read_text(encoding="utf-8")
    for table in (cards.memory_table(found), cards.cards_table(found)):
        for line in table.splitlines():
            assert line in page, "run python -m benchmarks.cards --publish"
    few, most = (cards.most_tokens(found["phi2"], card) for card in (CARDS[0], CARDS[-1]))
    assert 6 * cards.SHORT < few < most
    short, long = found["phi2"].short, found["phi2"].long
    each = (long.training.bytes - short.training.bytes) / (6 * (cards.LONG - cards.SHORT))
    held = short.model_bytes + short.training.bytes + each * (few - 6 * cards.SHORT)
    assert held == pytest.approx(cards.usable_bytes(CARDS[0]), rel=1e-3)


def test_every_model_of_the_page_is_a_row() -> None:
    page = cards.PAGE.read_text(encoding="utf-8")
    for name in cards.MODELS.values():
        assert page.count(f"| {name} |") >= 1 + len(CARDS)
