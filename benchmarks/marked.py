"""Places of a page that a program writes: what stands between a pair of markers.

    <!-- bench:begin NAME -->...<!-- bench:end NAME -->

A place that begins at the start of a line is a block and keeps lines of its own; any other is part of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping


def fill(page: str, kind: str, texts: Mapping[str, str]) -> str:
    """Return the page with the text of each name in its place.

    Args:
        kind: first word of the markers, ``bench`` above.

    Raises:
        ValueError: a text without a place, a place without a text, or two of one name.
    """
    marker = re.compile(rf"(<!-- {kind}:begin (\w+) -->)(\n?)(.*?)(<!-- {kind}:end \2 -->)", re.DOTALL)
    places = [match[2] for match in marker.finditer(page)]
    if sorted(places) != sorted(texts):
        raise ValueError(f"the page must have one place for each of {sorted(texts)}, it has {sorted(places)}")

    def written(match: re.Match[str]) -> str:
        text = texts[match[2]].strip("\n")
        return f"{match[1]}\n\n{text}\n\n{match[5]}" if match[3] else f"{match[1]}{text}{match[5]}"

    return marker.sub(written, page)
