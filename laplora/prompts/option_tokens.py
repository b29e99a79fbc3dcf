"""The text and the tokens of one option in its question, without letters and without the other options.

A template says it by ``option_text``. One that does not has it from its text: the list of choices goes, the words that
lead to it ("Choices:") go with it, and the option stands at the end, after the template's label prefix. So
``"{question} Choices:
{choices}
Answer:"`` asks ``"{question}
Answer: {option}"``.

An ``option_text`` without ``{option}`` has the option fill the blank ``_`` of its fields. The words after the blank are
then scored, not the option: they are the same for all options (partial scoring; Trinh and Le, arXiv 1806.02847).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laplora.errors import ConfigError, InvalidInputError
from laplora.prompts.templates import _PLACEHOLDER, PromptTemplate, _fill, render

#: Words that end in a colon and lead to the list, after a field, a sentence or a line.
_LEAD = re.compile(r"[^{}\n.?!:]*:\s*$")
_BLANK = re.compile(r"(?<!\w)_+(?!\w)")


@dataclass(frozen=True)
class OptionText:
    """One option's text.

    Attributes:
        question: what stands before the option, question and all.
        alone: what stands before it where the question is left out.
        filled: the option itself where the text after it is scored; else empty.
        scored: of which likelihood and states are read; a space at its start belongs to it.
    """

    question: str
    alone: str
    filled: str
    scored: str


def option_prompt(template: PromptTemplate) -> str:
    """Return the prompt of one option, with ``{option}`` where it stands; without: it fills the blank of a field.

    Raises:
        ConfigError: a template without choices, one that names them one by one and does not say how one is asked, or an
            ``option_text`` with other fields than the template's.
    """
    if not template.takes_choices:
        raise ConfigError(f"template {template.name!r} has no {{choices}}: options are what a list of choices has")
    fields = set(template.fields) - {"choices"}
    if template.option_text is not None:
        names = [m.group(1) for m in _PLACEHOLDER.finditer(template.option_text) if m.group(1)]
        if names.count("option") > 1 or not set(names) <= fields | {"option"} or not names:
            raise ConfigError(
                f"template {template.name!r} has an option_text with the fields {names}: it takes {{option}} once, and "
                f"any of {sorted(fields)}"
            )
        return template.option_text
    lists = [m for m in _PLACEHOLDER.finditer(template.text) if m.group(1) == "choices"]
    if template.option_count or len(lists) != 1 or "option" in fields:
        raise ConfigError(
            f"template {template.name!r} has no one list {{choices}} to leave out: say by option_text how one "
            'option is asked, as in "{question}\\nAnswer: {option}"'
        )
    before = _LEAD.sub("", template.text[: lists[0].start()]).rstrip()
    after = template.text[lists[0].end() :].lstrip(".,;")
    return (before + after).lstrip() + template.label_prefix + "{option}"


def option_texts(template: PromptTemplate, inputs: Mapping[str, Any], labels: Sequence[str]) -> list[OptionText]:
    """Return the text of each option of one input, in the input's order.

    Raises:
        InvalidInputError: as of ``render``; a field with no blank, or several, where an option has to fill one.
        ConfigError: as of ``option_prompt``.
    """
    prompt = option_prompt(template)
    render(template, inputs, labels)  # checks the fields
    if "choices" not in inputs:
        raise InvalidInputError("a whole prompt has no options to tell apart: send a question with its choices")
    fields = {name: str(value).strip() for name, value in inputs.items() if name != "choices"}
    choices = [str(choice).strip() for choice in inputs["choices"]]
    places = [m for m in _PLACEHOLDER.finditer(prompt) if m.group(1)]
    place = next((m for m in places if m.group(1) == "option"), None)
    if place is None:
        return _filled(_fill(prompt, fields), choices)
    before, after = prompt[: place.start()], _fill(prompt[place.end() :], fields)
    space = before[len(before.rstrip()) :]
    before = before[: len(before) - len(space)]
    last = max((m.end() for m in places if m.end() <= len(before)), default=0)
    question, alone = _fill(before, fields), _fill(before[last:], {}).lstrip()
    return [OptionText(question, alone, "", space + choice + after) for choice in choices]


def _filled(text: str, choices: Sequence[str]) -> list[OptionText]:
    blanks = list(_BLANK.finditer(text))
    if len(blanks) != 1:
        raise InvalidInputError(f"the options fill a blank _, and the text has {len(blanks)}: write one")
    before, after = text[: blanks[0].start()], text[blanks[0].end() :]
    if any(map(str.isalnum, after)):
        return [OptionText(before, "", choice, after) for choice in choices]
    start = before.rstrip()
    return [OptionText(start, "", "", before[len(start) :] + choice + after) for choice in choices]


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
