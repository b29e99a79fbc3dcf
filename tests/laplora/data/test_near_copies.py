"""Which texts are near-copies, against the plain definition."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import pytest

from laplora.data.near_copies import near_copies


def test_copies_with_other_numbers_names_case_and_marks_are_found_and_other_texts_are_not() -> None:
    texts = [
        "Order 1234 for Anna has not arrived, please look into it",
        "ORDER 99 for Bob has not arrived - please look into it!!",
        "Please cancel the order that I placed for Anna",
        "订单1234还没有送到",
        "订单99还没有送到！",
        "我想取消订单",
        "17",
        "18",
        "",
    ]
    assert near_copies(texts) == ([0, 0, 2, 3, 3, 5, 6, 7, 8], 9)


@pytest.mark.parametrize("longest", [8, 40])
def test_what_is_found_by_rare_words_is_what_comparing_all_finds(longest: int) -> None:
    draw = random.Random(0)
    alphabet = [chr(97 + number) for number in range(longest // 4 + 8)]
    texts = [" ".join(draw.choices(alphabet, k=draw.randrange(1, longest + 1))) for _ in range(400)]
    expected, leaders, same = list[int](), list[int](), dict[frozenset[str], int]()
    for number, own in enumerate(frozenset(text.split()) for text in texts):
        others = {one: frozenset(texts[one].split()) for one in leaders}
        alike = {one: Fraction(len(own & other), len(own | other)) for one, other in others.items()}
        best = max(alike, key=alike.__getitem__, default=number)
        new = number if alike.get(best, 0) < Fraction(3, 5) else best
        expected.append(same.setdefault(own, new))
        leaders += [number] if expected[-1] == number else []
    assert near_copies(texts) == (expected, 400)
    assert 20 < len(leaders) < 380


def test_a_text_that_is_alike_two_leaders_joins_the_most_alike_so_that_groups_make_no_chain() -> None:
    assert near_copies(["a b c d e f g", "c d e f g h i", "b c d e f g h i"]) == ([0, 1, 1], 3)
    words = [chr(97 + number // 26) + chr(97 + number % 26) for number in range(200)]
    sliding = [" ".join(words[start : start + 7]) for start in (*range(0, 120, 2), *range(1, 120, 2))]
    leaders, _ = near_copies(sliding)
    assert set(Counter(leaders).values()) == {2}


def test_texts_after_a_bounded_number_of_steps_are_near_copies_by_equal_words_alone() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.sample("abcdefghijklmnopqrstuvwxyz", 12)) for _ in range(3000)]
    leaders, compared = near_copies([*texts, f"{texts[0]} 17", f"{texts[0]} another"], steps=100_000)
    assert 50 < compared < 500
    assert leaders[compared:] == [*range(compared, 3000), 0, 3001]
