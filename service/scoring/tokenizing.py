"""Texts in, token ids out, off the event loop: what they weigh before, and whose turn it is at the threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

from laplora.errors import InvalidInputError, TooManyTokensError
from service.errors import DeadlineError

if TYPE_CHECKING:
    from laplora.predictor import Predictor

T = TypeVar("T")

#: Text that one call of a tokenizer thread takes at most, unless one input has more: about 40 ms of work.
TOKENIZE_PART_BYTES = 65_536


def text_sizes(predictor: Predictor, inputs: Sequence[Mapping[str, Any]], *, truncate: bool) -> list[int]:
    """Return the UTF-8 bytes that each input's prompt has at least: its fields' and the template's own.

    Raises:
        TooManyTokensError: a text that is certainly too long, however it is tokenised, and is not to be cut.
    """
    template = predictor.artifact.manifest.template.template().size_bytes
    sizes = []
    for i, fields in enumerate(inputs):
        own = sum(_size_bytes(value) for value in fields.values())
        fewest = predictor.token_bounds.fewest(own)
        if fewest > predictor.max_tokens and not truncate:
            limit = predictor.max_tokens
            raise _located(
                TooManyTokensError(
                    f"the text has at least {fewest} tokens, the limit is {limit}: shorten it or set truncate",
                    limit=limit,
                    got=fewest,
                ),
                i,
            )
        sizes.append(own if set(fields) == {"prompt"} else own + template)
    return sizes


def _size_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    return sum(map(_size_bytes, value)) if isinstance(value, list) else 0


async def encode_all(
    tokenizers: Executor,
    encode: Callable[[Mapping[str, Any]], T],
    inputs: Sequence[Mapping[str, Any]],
    sizes: Sequence[int],
    deadline: float,
) -> list[T]:
    """Return every input encoded, by ``encode``; an error names the input at fault.

    Args:
        sizes: bytes of text of each input.
        deadline: ``time.monotonic`` seconds.

    Raises:
        InvalidInputError, TooManyTokensError: an input does not fit.
        DeadlineError: the time is up before all are tokenised.

    The tokenizer threads get a few inputs at a time, so that requests take turns there, and what is left of a request
    that nobody waits for is never tokenised.
    """
    loop = asyncio.get_running_loop()
    found: list[T] = []
    for part in in_parts(sizes, TOKENIZE_PART_BYTES):
        if time.monotonic() > deadline:
            raise DeadlineError("the request's deadline passed while it was tokenized")
        found += await loop.run_in_executor(tokenizers, _encode_part, encode, inputs, part)
    return found


def in_parts(sizes: Sequence[int], most: int) -> list[range]:
    """Return consecutive ranges of positions, each of at most this much in all, or of one position."""
    parts: list[range] = []
    start, held = 0, 0
    for i, size in enumerate(sizes):
        if i > start and held + size > most:
            parts.append(range(start, i))
            start, held = i, 0
        held += size
    return [*parts, range(start, len(sizes))]


def _encode_part(encode: Callable[[Mapping[str, Any]], T], inputs: Sequence[Mapping[str, Any]], part: range) -> list[T]:
    rows = []
    for i in part:
        try:
            rows.append(encode(inputs[i]))
        except TooManyTokensError as error:
            raise _located(error, i) from None
        except InvalidInputError as error:
            field = f"inputs.{i}.{error.field}" if error.field else f"inputs.{i}"
            raise InvalidInputError(f"input {i}: {error}", field=field) from None
    return rows


def _located(error: TooManyTokensError, index: int) -> TooManyTokensError:
    located = TooManyTokensError(f"input {index}: {error}", limit=error.limit, got=error.got)
    located.field = f"inputs.{index}"
    return located
