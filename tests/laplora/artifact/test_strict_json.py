"""What Python's JSON reader takes and the standard does not."""

from __future__ import annotations

import pytest

from laplora.artifact.strict_json import strict_json


def test_json_is_read() -> None:
    assert strict_json(b'{"a": [1, -2.5, 1e300, null, true, "NaN"], "b": {"a": {}}}') == {
        "a": [1, -2.5, 1e300, None, True, "NaN"],
        "b": {"a": {}},
    }


@pytest.mark.parametrize(
    "text",
    ["NaN", "[Infinity]", "-Infinity", "1e999", "[-1e999]", '{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]', "{"],
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        strict_json(text)
