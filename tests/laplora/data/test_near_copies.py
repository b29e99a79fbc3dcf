"""Which texts are near-copies, against the plain definition."""

from __future__ import annotations

import random

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
    assert near_copies(texts) == [[0], [0], [2], [3], [3], [5], [6], [7], [8]]


def test_what_is_found_by_rare_words_is_what_comparing_all_finds() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefghij", k=draw.randrange(1, 9))) for _ in range(400)]
    expected, leaders = list[list[int]](), list[int]()
    for number, text in enumerate(texts):
        own = set(text.split())
        alike = [
            one for one in leaders if 5 * len(own & set(texts[one].split())) >= 3 * len(own | {*texts[one].split()})
        ]
        expected.append(alike or [number])
        leaders += [] if alike else [number]
    assert near_copies(texts) == expected
    assert 20 < len(leaders) < 380
