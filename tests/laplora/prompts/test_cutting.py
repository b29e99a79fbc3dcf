"""A prompt that is too long loses text of one field, and everything around it stays."""

from __future__ import annotations

from typing import Any

import pytest
from exhaustive import drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laplora.errors import TooManyTokensError
from laplora.prompts.cutting import encode_inputs
from laplora.prompts.rows import encode
from laplora.prompts.templates import Cut, PromptTemplate
from laplora.prompts.token_bounds import UNBOUNDED, token_bounds

LABELS = ("yes", "no")
TEXT = "Read this: {body} By {author}. Is it good? Answer:"


def template(side: str | None) -> PromptTemplate:
    return PromptTemplate("t", 1, TEXT, cut=None if side is None else Cut("body", side))  # type: ignore[arg-type]


def row(smollm: Any, side: str | None, body: str, limit: int = 32, *, truncate: bool = True, known: bool = True) -> Any:
    bounds = token_bounds(smollm) if known else UNBOUNDED
    inputs = {"body": body, "author": "Ann"}
    return encode_inputs(smollm, template(side), inputs, LABELS, max_tokens=limit, truncate=truncate, bounds=bounds)


LONG = " ".join(f"word{i} and" for i in range(200))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_field_is_cut_and_the_rest_is_whole(smollm: Any, side: str) -> None:
    found = row(smollm, side, LONG)
    text = smollm.decode(found.token_ids)
    assert found.truncated
    assert 28 <= len(found.token_ids) <= 32
    assert text.startswith("Read this: ")
    assert text.endswith(" By Ann. Is it good? Answer:")
    body = text.removeprefix("Read this: ").removesuffix(" By Ann. Is it good? Answer:")
    assert LONG.startswith(body) if side == "right" else LONG.endswith(body)


def test_what_fits_or_may_not_be_cut_is_as_without(smollm: Any) -> None:
    for side in (None, "left", "right"):
        short = row(smollm, side, "Short.")
        assert short == row(smollm, None, "Short.")
        assert not short.truncated
        with pytest.raises(TooManyTokensError, match="the limit is 32"):
            row(smollm, side, LONG, truncate=False)
    prompt = {"prompt": LONG}
    whole = encode(smollm, LONG, 2, max_tokens=16, truncate=True)
    assert encode_inputs(smollm, template("right"), prompt, LABELS, max_tokens=16, truncate=True) == whole
    # Other fields that are too long leave the prompt to be cut.
    assert row(smollm, "right", LONG, 10) == row(smollm, None, LONG, 10)


@settings(max_examples=drawn(60), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300).filter(lambda t: bool(t.strip())),
    st.sampled_from(["left", "right"]),
    st.integers(24, 40),
)
def test_any_text_fits_and_keeps_what_is_around_it(smollm: Any, body: str, side: str, limit: int) -> None:
    """Also characters of several tokens, of which no half is left, and with or without bounds on the tokens."""
    found = row(smollm, side, body, limit)
    assert len(found.token_ids) <= limit
    assert found == row(smollm, side, body, limit, known=False)
    text = smollm.decode(found.token_ids)
    if found.truncated:
        assert text.startswith("Read this: ") == (row(smollm, None, body, limit) != found)
        assert text.endswith(" By Ann. Is it good? Answer:")
