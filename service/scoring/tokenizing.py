"""From a plan's inputs to rows of token ids, off the event loop; before that, what the prompts are expected to have."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from laplora.errors import InvalidInputError, TooManyTokensError
from service.scoring.admission import Amount
from service.scoring.plan import Plan

if TYPE_CHECKING:
    from laplora.prompts.rows import EncodedRow
    from service.scoring.model import Model

#: Threads that render and tokenise.
TOKENIZE_THREADS = 2
#: Text that one call of a tokenizer thread takes at most, unless one input has more: about 40 ms of work.
TOKENIZE_PART_BYTES = 65_536
#: Tokens per byte that are assumed before any text was tokenised: English has 0.23, three bytes a token are generous.
FIRST_TOKENS_PER_BYTE = 1 / 3
#: Bytes of text that an estimate goes back to.
_MEMORY_BYTES = 2**20


@dataclass(frozen=True)
class Expected:
    """The expected size of a plan's prompts.

    Attributes:
        amount: of the queue.
        fewest_tokens: that they have for certain.
        sizes: UTF-8 bytes that each input's prompt has at least.
    """

    amount: Amount
    fewest_tokens: int
    sizes: Sequence[int]


class Tokenizing:
    """Renders and tokenises prompts on threads, and learns how many tokens each artifact's texts have.

    Args:
        threads: get a few inputs at a time, so that plans take turns there, and what is left of a plan that nobody
            waits for is never tokenised.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._estimates: WeakKeyDictionary[Model, TokenEstimate] = WeakKeyDictionary()

    def estimate(self, model: Model) -> TokenEstimate:
        """Return what was learned of an artifact's tokens per byte."""
        return self._estimates.setdefault(model, TokenEstimate())

    def expect(self, plan: Plan) -> Expected:
        """Return what a plan's prompts are expected to have.

        Raises:
            TooManyTokensError: a text that is certainly too long, however it is tokenised, and is not to be cut.
        """
        model, sizes = plan.model, _text_sizes(plan)
        estimate, bounds, most = self.estimate(model), model.token_bounds, model.max_tokens
        tokens = sum(estimate.tokens(size, most) for size in sizes)
        amount = Amount(rows=len(sizes), tokens=tokens, text_bytes=sum(sizes))
        return Expected(amount, sum(min(most, bounds.fewest(size)) for size in sizes), sizes)

    async def encode(self, plan: Plan, expected: Expected) -> list[EncodedRow]:
        """Return a plan's rows.

        Raises:
            InvalidInputError, TooManyTokensError: an input does not fit; the field names which.
        """
        loop = asyncio.get_running_loop()
        rows: list[EncodedRow] = []
        for part in in_parts(expected.sizes, TOKENIZE_PART_BYTES):
            rows += await loop.run_in_executor(self._threads, _encode_part, plan, part)
        self.estimate(plan.model).learn(rows, expected.sizes)
        return rows


def _text_sizes(plan: Plan) -> list[int]:
    """Return the UTF-8 bytes that each input's prompt has at least: its fields' and the template's."""
    model = plan.model
    template_bytes = model.artifact.manifest.template.template().size_bytes
    sizes = []
    for i, fields in enumerate(plan.inputs):
        field_bytes = sum(map(_size_bytes, fields.values()))
        fewest, limit = model.token_bounds.fewest(field_bytes), model.max_tokens
        if fewest > limit and not plan.truncate:
            message = f"the text has at least {fewest} tokens, the limit is {limit}: shorten it or set truncate"
            raise _located(TooManyTokensError(message, limit=limit, got=fewest), i)
        sizes.append(field_bytes if set(fields) == {"prompt"} else field_bytes + template_bytes)
    return sizes


def _size_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    return sum(map(_size_bytes, value)) if isinstance(value, list) else 0


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


def _encode_part(plan: Plan, part: range) -> list[EncodedRow]:
    rows = []
    for i in part:
        try:
            rows.append(plan.model.encode(plan.inputs[i], truncate=plan.truncate))
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


class TokenEstimate:
    """Tokens of an artifact's prompts before they are tokenised, from those of the last ones, byte for byte."""

    def __init__(self) -> None:
        self._tokens, self._bytes = FIRST_TOKENS_PER_BYTE * _MEMORY_BYTES / 64, _MEMORY_BYTES / 64

    @property
    def tokens_per_byte(self) -> float:
        """The expected value for the next text."""
        return self._tokens / self._bytes

    def tokens(self, text_bytes: int, max_tokens: int) -> int:
        """Return the tokens to expect of a prompt of this many UTF-8 bytes that is cut or refused above a limit."""
        return min(max_tokens, max(1, math.ceil(text_bytes * self.tokens_per_byte)))

    def learn(self, rows: Sequence[EncodedRow], sizes: Sequence[int]) -> None:
        """Take in a request's rows, each of a prompt of this many bytes; those that were cut tell nothing."""
        for row, size in zip(rows, sizes, strict=True):
            if not row.truncated:
                self._tokens, self._bytes = self._tokens + len(row.token_ids), self._bytes + size
        if self._bytes > _MEMORY_BYTES:
            self._tokens, self._bytes = self._tokens / 2, self._bytes / 2
