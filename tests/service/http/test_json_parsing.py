"""What a JSON text holds is counted before it is built, and what is too much is never built."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Served, serve
from test_hostile_process import SIZE, filled

from service.errors import BatchTooLargeError, InvalidJsonError, InvalidRequestError
from service.http import body, json_parsing
from service.http.json_parsing import FEWEST_MEMBERS, MAX_DIGITS, MAX_KEYS, count_members, most_members, parse_json

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


def members(value: Any) -> int:
    """Return the members of lists and objects, counted in the value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(1 + members(item) for item in inner)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.text(alphabet='\\"{}[],: ', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.text(alphabet='\\"{}[],', max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values, st.booleans(), st.sampled_from([None, 1]))
def test_the_count_is_that_of_the_value(value: Any, ascii_only: bool, indent: int | None) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    assert count_members(raw, 10_000)[0] == members(value)


TOO_MANY: dict[str, Callable[[], bytes]] = {
    "inputs {}": lambda: filled(b'{"inputs": [', b"{},", b"{}]}"),
    "unknown keys": lambda: b"{" + b",".join(b'"%07d":0' % i for i in range(300_000)) + b"}",
    "nested lists": lambda: b"[" * SIZE,
    "after an escape that is none": lambda: filled(b"[", b"0,", b"\\]"),
    "cut": lambda: filled(b"[", b'{"a":0},', b'"'),
}


@pytest.mark.parametrize("name", TOO_MANY)
def test_too_many_members_are_refused_before_any_is_built(name: str) -> None:
    raw = TOO_MANY[name]()
    tracemalloc.start()
    try:
        with pytest.raises(BatchTooLargeError) as refused:
            parse_json(raw, max_members=32_768)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (refused.value.field, refused.value.limit) == ("body", 32_768)
    assert refused.value.got is not None
    assert refused.value.got > 32_768
    # Two copies of the bytes at most, and pieces; the values would take 100 MiB and more.
    assert peak < 6 * SIZE


def test_a_body_may_have_as_many_members_and_an_object_as_many_keys_as_its_limit() -> None:
    raw = json.dumps([0] * FEWEST_MEMBERS).encode()
    assert len(parse_json(raw)) == FEWEST_MEMBERS
    with pytest.raises(BatchTooLargeError) as refused:
        parse_json(raw[:-1] + b",0]")
    assert refused.value.got == FEWEST_MEMBERS + 1
    assert (most_members(1), most_members(256)) == (FEWEST_MEMBERS, 32_768)
    keys = {f"k{i}": 0 for i in range(MAX_KEYS)}
    assert parse_json(json.dumps({"inputs": [keys]}).encode()) == {"inputs": [keys]}
    with pytest.raises(InvalidRequestError) as several:
        parse_json(json.dumps({"inputs": [keys | {"one": 1}]}).encode())
    assert (several.value.limit, several.value.got) == (MAX_KEYS, MAX_KEYS + 1)


@pytest.mark.parametrize("text", ["a, b, " * 10_000, '{"[,]}' * 10_000, "\\" * 60_000, '\\"' * 30_000, "9" * 100_000])
def test_what_is_in_a_text_is_no_member_and_no_number(text: str) -> None:
    value = {"inputs": [{"text": text}], "number": 10**MAX_DIGITS // 10}
    assert parse_json(json.dumps(value).encode(), max_members=4) == value


@pytest.mark.parametrize("number", [b"9" * 4000, b"0." + b"9" * 4000, b"1e" + b"9" * 4000, b"9" * (MAX_DIGITS + 1)])
def test_many_long_numbers_are_refused_unread(number: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_parsing, "from_json", pytest.fail)
    with pytest.raises(InvalidJsonError, match="digits"):
        parse_json(filled(b"[", number + b",", number + b"]"), max_members=100_000)


async def test_no_item_of_too_many_is_validated() -> None:
    """The count is refused before pydantic sees an item: a list of wrong ones says how many came, not what is wrong."""
    asked: list[tuple[str, str, Any]] = [("/predict", "inputs", {"text": "a"}), ("/evaluate", "inputs", {})]
    asked += [("/suggest", "inputs", {}), ("/feedback", "items", 0)]
    async with serve(max_inputs=2) as served:
        assert "| `max_inputs` | 2 | Most inputs of one request" in served.app.openapi()["info"]["description"]
        for path, name, item in asked:
            response = await served.client.post(path, json={name: [item] * 3})
            detail = response.json()["error"]
            assert (response.status_code, detail["code"]) == (413, "batch_too_large")
            assert (detail["field"], detail["limit"], detail["got"]) == (name, 2, 3)


async def test_a_large_body_is_parsed_by_threads_of_its_own(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    names: list[str] = []
    real = json_parsing.parse_json

    def parse(raw: bytes, **limits: int) -> Any:
        names.append(threading.current_thread().name)
        return real(raw, **limits)

    monkeypatch.setattr(body, "parse_json", parse)
    assert (await served.predict("a " * 100_000)).status_code == 422
    assert (await served.predict("a")).status_code == 200
    assert names[0].startswith("laplora-parse")
    assert names[1] == threading.current_thread().name
