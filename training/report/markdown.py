"""Markdown that programs write: tables, and the places of a page between a pair of markers.

    <!-- study:begin NAME -->...<!-- study:end NAME -->

A place that begins at the start of a line is a block of lines; any other is part of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from laplora.errors import DataError


def markdown_table(heading: Iterable[str], rows: Iterable[Iterable[Any]], left: Collection[int] = (0,)) -> str:
    """Return a table, a line for each row; the columns of ``left`` are left-aligned, the others right-aligned.

    Cells are not padded to one width: a new figure changes one line of a page.
    """
    heading = list(heading)
    rule = ["---" if i in left else "---:" for i in range(len(heading))]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (heading, rule, *rows))


def escaped(text: str) -> str:
    """Return text that cannot end a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def fill(page: str, kind: str, texts: Mapping[str, str]) -> str:
    """Return the page with the text of each name in its place.

    Args:
        kind: first word of the markers, ``study`` above.

    Raises:
        DataError: a text without a place, a place without a text, or two places of one name.
    """
    marker = re.compile(rf"(<!-- {kind}:begin (\w+) -->)(\n?)(.*?)(<!-- {kind}:end \2 -->)", re.DOTALL)
    places = [match[2] for match in marker.finditer(page)]
    if sorted(places) != sorted(texts):
        raise DataError(
            f"the page must hold one pair of markers for each of {sorted(texts)}, got {sorted(places)}: write "
            f"<!-- {kind}:begin NAME --> and <!-- {kind}:end NAME -->"
        )

    def written(match: re.Match[str]) -> str:
        begin, name, block, _, end = match.groups()
        text = texts[name].strip("\n")
        if block:
            text = f"\n\n{text}\n\n" if text else "\n"
        return begin + text + end

    return marker.sub(written, page)
