"""A question's options as tokens: each with the question before it, and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laplora.prompts.options import OptionText, option_texts
from laplora.prompts.templates import PromptTemplate


@dataclass(frozen=True)
class Question:
    """The tokens of a question's options.

    Attributes:
        begins: tokens that all options' texts begin with.
        ends: by option the tokens after these, at least one.
        scored: by option how many of its last tokens are scored, from 1 on.
    """

    begins: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]
    scored: tuple[int, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens, one option's after another's."""
        return (*self.begins, *(token for end in self.ends for token in end))

    def parted(self) -> list[Question]:
        """Return each option as a question of its own."""
        return [Question(self.begins, (end,), (count,)) for end, count in zip(self.ends, self.scored, strict=True)]


@dataclass(frozen=True)
class OptionTokens:
    """The tokens of a question's options. They are in the order of their texts, so that rounding is never the user's.

    Attributes:
        with_question, alone: with the question before each, and without it.
        places: by option its place in the user's order; characters: by option how many of its text are scored.
    """

    with_question: Question
    alone: Question
    places: tuple[int, ...]
    characters: tuple[int, ...]


def encode_options(
    tokenizer: Any, template: PromptTemplate, inputs: Mapping[str, Any], labels: Sequence[str], max_tokens: int
) -> OptionTokens:
    """Return the options of one input.

    Args:
        max_tokens: longest text of an option with its question, as of ``encode_question``.

    Raises:
        InvalidInputError, ConfigError: as of ``option_texts``.
    """
    given = option_texts(template, inputs, labels)
    places = sorted(range(len(given)), key=lambda option: inputs["choices"][option])
    texts = [given[place] for place in places]
    with_question, alone = (encode_question(tokenizer, texts, max_tokens, with_question=one) for one in (True, False))
    return OptionTokens(with_question, alone, tuple(places), tuple(len(text.scored.strip()) or 1 for text in texts))


def encode_question(
    tokenizer: Any, texts: Sequence[OptionText], max_tokens: int, *, with_question: bool = True
) -> Question:
    """Return a question's tokens: of each option those of its whole text.

    A token that holds characters of both the scored text and what is before it counts as scored. If neither text nor a
    token of the tokenizer stands before an option, the token that starts or ends texts is put there. A text that is too
    long loses tokens of its beginning, and then of the option's end.

    Args:
        with_question: whether ``OptionText.question`` stands before the option, or ``OptionText.alone``.
    """
    before = [(one.question if with_question else one.alone) for one in texts]
    given = [start + one.filled for start, one in zip(before, texts, strict=True)]
    encoded = tokenizer(
        [text + one.scored for text, one in zip(given, texts, strict=True)], return_offsets_mapping=True
    )
    rows, first = list[list[int]](), list[int]()
    for text, tokens, offsets in zip(given, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        # A special token behind the text ends at no character, as one before it does.
        scored = [place for place, (_, end) in enumerate(offsets) if end > len(text)] or [len(tokens) - 1]
        rows.append(tokens[: scored[-1] + 1])
        first.append(scored[0])
    if min(first) == 0 or (not before[0] and encoded["offset_mapping"][0][0][1] > 0):
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        start = next(token for token in ids if token is not None)
        rows, first = [[start, *row] for row in rows], [place + 1 for place in first]
    differs = (place for place, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)
    shared = min(next(differs, min(map(len, rows))), *first)
    cut = max(0, min(shared - 1, max(map(len, rows)) - max_tokens))
    begins = (*rows[0][: min(1, shared)], *rows[0][1 + cut : shared])
    ends = [tuple(row[shared : shared + max_tokens - len(begins)]) for row in rows]
    scored = [max(1, len(end) - (place - shared)) for end, place in zip(ends, first, strict=True)]
    return Question(begins, tuple(ends), tuple(scored))
