"""Tables and the places of a page that programs write."""

from __future__ import annotations

import pytest

from laplora.errors import DataError
from training.report.markdown import escaped, fill, markdown_table


def test_a_table_is_a_line_a_row() -> None:
    assert markdown_table(["a", "b"], [["x", 1], [escaped("y | z"), ""]]) == (
        "| a | b |\n| --- | ---: |\n| x | 1 |\n| y \\| z |  |\n"
    )


def test_places_of_a_page_are_filled_and_none_is_left_over() -> None:
    page = "It costs <!-- x:begin a -->old<!-- x:end a --> now.\n<!-- x:begin b -->\n| old |\n<!-- x:end b -->\n"
    filled = fill(page, "x", {"a": "new", "b": "| t |\n"})
    assert filled == (
        "It costs <!-- x:begin a -->new<!-- x:end a --> now.\n<!-- x:begin b -->\n\n| t |\n\n<!-- x:end b -->\n"
    )
    assert fill(filled, "x", {"a": "new", "b": "| t |"}) == filled
    for texts in ({"a": "new"}, {"a": "new", "b": "", "c": ""}):
        with pytest.raises(DataError, match="one pair of markers for each"):
            fill(page, "x", texts)
