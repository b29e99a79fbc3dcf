"""From a JSON text to its value: strict, and counted before anything of it is built."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, Final

from pydantic_core import from_json

from service.errors import BatchTooLargeError, InvalidJsonError, InvalidRequestError

#: Most keys of one object; an input has the fields of a template, its id and its label.
MAX_KEYS: Final = 64
#: Most members of lists and objects in a body, for each input that it may have, and at the least.
MEMBERS_PER_INPUT: Final = 128
FEWEST_MEMBERS: Final = 4096
#: Most digits in a row of a number, in a text long enough for many of them: reading 4,000 takes thousands of steps.
MAX_DIGITS: Final = 100
_WHITE_SPACE = b" \t\r\n"
_ALL_DIGITS_ZERO = bytes.maketrans(b"123456789", b"0" * 9)


def most_members(max_inputs: int) -> int:
    """Return the most members of lists and objects that a body of so many inputs may have."""
    return max(FEWEST_MEMBERS, MEMBERS_PER_INPUT * max_inputs)


def count_members(raw: bytes, most: int) -> tuple[int, bytes]:
    """Return how many members the lists and objects of a JSON text have in all, and what of it is outside strings.

    Exact up to ``most`` for what is JSON. For other text, it is at least as many as a parser meets before it fails.
    Above ``most``, the number is some greater one, and the second is empty.
    """
    # Escaped quotes first: afterwards every quote begins or ends a string.
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in raw else raw
    # No member has more than two strings, its key and itself.
    strings = (bare.count(b'"') + 1) // 2
    if strings > 2 * most + 1:
        return strings // 2, b""
    # One quote stays in each string's place: a list of one string is not an empty one.
    outside = b'"'.join(bare.split(b'"')[::2])
    commas = outside.count(b",")
    if commas >= most:
        return commas + 1, b""
    outside = outside.translate(None, _WHITE_SPACE)
    # Each list and object that is not empty has one member more than commas.
    filled = outside.count(b"{") + outside.count(b"[") - outside.count(b"{}") - outside.count(b"[]")
    return commas + filled, outside


def _check_size(raw: bytes, max_members: int) -> None:
    members, outside = count_members(raw, max_members)
    if members > max_members:
        raise BatchTooLargeError(
            f"the body's lists and objects have {members} members or more, {max_members} is the most: send it in parts",
            field="body",
            limit=max_members,
            got=members,
        )
    if b"0" * (MAX_DIGITS + 1) in outside.translate(_ALL_DIGITS_ZERO):
        raise InvalidJsonError(
            f"a number in the body has more than {MAX_DIGITS} digits: send no more than a float holds", field="body"
        )


def parse_json(raw: bytes, *, max_members: int = FEWEST_MEMBERS, max_keys: int = MAX_KEYS) -> Any:
    """Return the parsed text.

    Args:
        max_members: of all its lists and objects together; max_keys: of one object.

    Raises:
        InvalidJsonError: empty, not UTF-8, not JSON, NaN or infinity, a number of thousands of digits, a lone
            surrogate, nested too deep, or a key that comes twice in one object.
        BatchTooLargeError: more members than ``max_members``; nothing was built.
        InvalidRequestError: an object of more than ``max_keys`` keys.
    """
    if not raw.strip():
        raise InvalidJsonError("the body is empty: send a JSON object", field="body")
    # A member takes two bytes at least.
    if len(raw) > 2 * max_members:
        _check_size(raw, max_members)
    try:
        value = from_json(raw, allow_inf_nan=False)
        # pydantic's parser keeps the last of two values without a word; Python's, slower, shows each object's pairs.
        json.loads(raw, object_pairs_hook=partial(_check_keys, max_keys))
    except ValueError as error:
        # The parsers' messages name the problem and the position, never the text.
        raise InvalidJsonError(f"the body is not valid JSON: {error}", field="body") from None
    return value


def _check_keys(most: int, pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > most:
        raise InvalidRequestError(
            f"an object in the body has {len(pairs)} keys, {most} is the most: leave out what is no field",
            field="body",
            limit=most,
            got=len(pairs),
        )
    if len({key for key, _ in pairs}) < len(pairs):
        raise InvalidJsonError("an object in the body has the same key twice: send each key once", field="body")
