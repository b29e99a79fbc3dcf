"""Prompt templates: the text of a prompt from its fields, and the tokens of the labels after it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

from laplora.errors import ConfigError, InvalidInputError, LabelTokenError

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Possible beginnings of a field: texts that tokenizers join with what stands before them in different ways.
_FIRST_TEXTS = ("a", "The", "1", "(", '"', " a", "\n", "\u00e9", "\u4e2d")
#: The field of an input that another model has answered: by label the probability that it gave.
MODEL_PROBS = "model_probs"
#: The fields of an input or a labelled row beside its template's fields.
_RESERVED = ("id", "label", "prompt", MODEL_PROBS)
_OPTION = re.compile(r"option([1-9][0-9]*)$")
#: A part of a prompt, and whether it is the text of a field.
Piece = tuple[str, bool]


@dataclass(frozen=True)
class Cut:
    """Which field of a prompt that is too long is cut, and on which side.

    Attributes:
        field: its name; None: the longest text of each input.
    """

    field: str | None = None
    side: Literal["left", "right"] = "right"

    def of(self, inputs: Mapping[str, Any]) -> str | None:
        """Return the field of an input that is cut; None: it has no such text."""
        if self.field is not None:
            return self.field if self.field in inputs else None
        texts = [name for name, value in inputs.items() if isinstance(value, str) and name != "prompt"]
        return max(texts, key=lambda name: len(inputs[name]), default=None)


@dataclass(frozen=True)
class PromptTemplate:
    """A named, versioned prompt.

    Attributes:
        version: raised whenever the text changes.
        text: the prompt with ``{field}`` placeholders; ``{{`` and ``}}`` are literal braces.
            ``{choices}`` is the rendered list of choices, ``{option1}`` the first one, and so on.
        choice: how one choice is written, from ``{label}`` and ``{text}``.
        choice_separator: what stands between two choices.
        label_prefix: what stands between the prompt and the label token.
        cut: what is cut of a prompt that is too long; None: the prompt, wherever its read-out cuts it, be it of the
            instruction.
        option_text: the prompt of one option alone, with ``{option}`` (``laplora.prompts.option_tokens``); None: of
            ``text``.
        answered: the other model that has answered each input, which has that answer as ``MODEL_PROBS``; None: none.
    """

    name: str
    version: int
    text: str
    choice: str = "{label}. {text}"
    choice_separator: str = "\n"
    label_prefix: str = " "
    cut: Cut | None = None
    option_text: str | None = None
    answered: str | None = None
    placeholders: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = tuple(dict.fromkeys(m.group(1) for m in _PLACEHOLDER.finditer(self.text) if m.group(1)))
        if not names:
            raise ConfigError(
                f"template {self.name!r} has no {{field}} placeholder, and every prompt would be the same: write the "
                "name of a row's field in braces"
            )
        if taken := [name for name in names if name in _RESERVED]:
            raise ConfigError(
                f"template {self.name!r} has the field {taken[0]!r}, and no field may be called "
                f"{', '.join(_RESERVED)}: an input has these beside its fields. Give it another name, in the template "
                "and in the rows (a configuration's data.columns says which column it is)"
            )
        of_choice = {m.group(1) for m in _PLACEHOLDER.finditer(self.choice) if m.group(1)}
        if odd := sorted(of_choice - {"label", "text"}):
            raise ConfigError(f"template {self.name!r} writes a choice with {odd}: it has {{label}} and {{text}} alone")
        object.__setattr__(self, "placeholders", names)
        if self.answered and self.takes_choices:
            raise ConfigError(f"template {self.name!r} takes choices, and another model's answers are of fixed labels")
        named = None if self.cut is None else self.cut.field
        if self.cut is not None and named is not None and (named == "choices" or named not in self.fields):
            texts = sorted(set(self.fields) - {"choices"})
            raise ConfigError(f"template {self.name!r} has no text {self.cut.field!r} to cut: it has {texts}")

    @property
    def takes_choices(self) -> bool:
        """Whether the template is filled from a question and a list of choices."""
        return "choices" in self.fields

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the input fields this template needs, in order of appearance."""
        names = ["choices" if _OPTION.match(n) else n for n in self.placeholders]
        return tuple(dict.fromkeys(names))

    def cutting_texts(self) -> PromptTemplate:
        """Return the template that cuts the longest text of an input, where it has words of its own to keep."""
        own_words = any(map(str.isalpha, _PLACEHOLDER.sub("", self.text)))
        return replace(self, cut=Cut()) if own_words and self.cut is None else self

    @property
    def option_count(self) -> int | None:
        """How many choices the template takes, where it names them one by one."""
        return max((int(m.group(1)) for n in self.placeholders if (m := _OPTION.match(n))), default=None)

    @property
    def ends_alike(self) -> bool:
        """Whether every prompt ends in the same words, which the template has behind its last field."""
        return any(map(str.isalpha, self.ending))

    @property
    def ending(self) -> str:
        """The text that every prompt ends in, after the last field."""
        start = max(m.end() for m in _PLACEHOLDER.finditer(self.text) if m.group(1))
        return _fill(self.text[start:], {})

    @property
    def beginning(self) -> str:
        """The text that every prompt begins with, before the first field."""
        end = next(m.start() for m in _PLACEHOLDER.finditer(self.text) if m.group(1))
        return _fill(self.text[:end], {})

    @cached_property
    def size_bytes(self) -> int:
        """UTF-8 bytes that a prompt has at least, beside those of its fields."""
        return len(_PLACEHOLDER.sub("", self.text).encode())


#: Templates by name. WinoGrande's is the one of Yang et al. (arXiv 2308.13111), its missing dot included.
TEMPLATES: dict[str, PromptTemplate] = {
    t.name: t
    for t in (
        PromptTemplate(
            "winogrande",
            1,
            "Select one of the choices that answers the following question: {question} "
            "Choices: A. {option1}. B {option2}. Answer:",
            option_text="{question}",
        ),
        PromptTemplate(
            "multiple_choice",
            1,
            "Select one of the choices that answers the following question: {question} Choices:\n{choices}\nAnswer:",
            option_text="Question: {question}\nAnswer: {option}",
        ),
        PromptTemplate("boolq", 1, "Answer the question with only Yes or No: {question} Context: {passage}. Answer:"),
        PromptTemplate("sentiment", 1, "Review: {text}\nIs this review positive or negative? Answer:"),
        PromptTemplate("subject", 1, "Question: {text}\nThe subject of this question is"),
        PromptTemplate("entailment", 1, "{premise}\nQuestion: {hypothesis} Yes or No?\nAnswer:"),
    )
}


def render(template: PromptTemplate, inputs: Mapping[str, Any], labels: Sequence[str]) -> tuple[str, int]:
    """Return the prompt of one input and the number of classes it can take: as many as choices, or all labels.

    Fields and choices lose the white space at their ends: how a text ends says nothing, and a model reads it.

    Args:
        inputs: the template's named fields, each a string; ``choices`` is a sequence of strings.
            ``{"prompt": text}`` alone is taken as already rendered.

    Raises:
        InvalidInputError: a field missing, unknown, empty or not text; too few or too many choices.
    """
    pieces, classes = render_pieces(template, inputs, labels)
    return "".join(text for text, _ in pieces), classes


def render_pieces(
    template: PromptTemplate, inputs: Mapping[str, Any], labels: Sequence[str]
) -> tuple[list[Piece], int]:
    """Return the prompt of ``render`` in pieces that tell the fields' own texts from the template's words.

    The text of each choice of ``{choices}`` is a field's; so is all of an input that is already rendered.
    """
    if set(inputs) == {"prompt"}:
        return [(_text(inputs["prompt"], "prompt"), True)], len(labels)
    expected = (*template.fields, *([MODEL_PROBS] if template.answered else []))
    missing = [n for n in expected if n not in inputs]
    unknown = [n for n in inputs if n not in expected]
    if missing or unknown:
        # Names only that look like one: a client may have put its text where a name belongs.
        shown = [n if _NAME.fullmatch(n) else "?" for n in map(str, unknown[:8])]
        problem = ", ".join(f"{what} {of}" for what, of in (("missing", missing), ("unknown", shown)) if of)
        first = missing[0] if missing else str(unknown[0])[:64]
        raise InvalidInputError(f"inputs have the fields {list(expected)} here: {problem}", field=first)
    values = {name: [(_text(inputs[name], name).strip(), True)] for name in template.fields if name != "choices"}
    if not template.takes_choices:
        return _fill_pieces(template.text, values), len(labels)
    choices = _choices(inputs["choices"], template, len(labels))
    values |= {f"option{i}": [(choice, True)] for i, choice in enumerate(choices, start=1)}
    values["choices"] = []
    for label, choice in zip(labels, choices, strict=False):
        separator = [(template.choice_separator, False)] if values["choices"] else []
        option = _fill_pieces(template.choice, {"label": [(label, False)], "text": [(choice, True)]})
        values["choices"] += separator + option
    return _fill_pieces(template.text, values), len(choices)


def _fill(text: str, values: Mapping[str, str]) -> str:
    return "".join(piece for piece, _ in _fill_pieces(text, {name: [(one, True)] for name, one in values.items()}))


def _fill_pieces(text: str, values: Mapping[str, list[Piece]]) -> list[Piece]:
    pieces, end = list[Piece](), 0
    for match in _PLACEHOLDER.finditer(text):
        name = match.group(1)
        pieces += [(text[end : match.start()], False), *(values[name] if name else [(match.group(0)[0], False)])]
        end = match.end()
    return [*pieces, (text[end:], False)]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"field {name!r} must be a string, got {type(value).__name__}", field=name)
    if not value.strip():
        raise InvalidInputError(f"field {name!r} is empty: send at least one visible character", field=name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"field {name!r} holds an unpaired surrogate: send valid Unicode text", field=name
        ) from None
    return value


def _choices(value: Any, template: PromptTemplate, class_count: int) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidInputError("field 'choices' must be a list of strings", field="choices")
    count = template.option_count
    low, high = (count, count) if count else (2, class_count)
    if not low <= len(value) <= high:
        wanted = str(low) if low == high else f"{low} to {high}"
        raise InvalidInputError(f"template {template.name!r} takes {wanted} choices, got {len(value)}", field="choices")
    return [_text(c, f"choices[{i}]").strip() for i, c in enumerate(value)]


def beginning_tokens(tokenizer: Any, template: PromptTemplate) -> tuple[int, ...]:
    """Return the tokens that prompts begin with, special tokens included, as far as no usual text changes them.

    A rare one may: whoever uses them compares each prompt.
    """
    text = template.beginning
    prompts = [tokenizer.encode(text + first) for first in _FIRST_TEXTS] if text else [[]]
    alike = zip(*prompts, strict=False)
    return tuple(tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, alike))


def default_verbalizers(template: PromptTemplate, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the text that stands for each label after the prompt: the template's prefix and the label's name."""
    return tuple(template.label_prefix + label for label in labels)


def resolve_label_tokens(tokenizer: Any, template: PromptTemplate, verbalizers: Sequence[str]) -> list[int]:
    """Return the one token that each verbalizer adds to the end of the template's text, in order.

    A verbalizer (Schick and Schuetze, arXiv 2001.07676) is the text that stands for a label, its leading space
    included. Raises LabelTokenError for fewer than two, one of several tokens, or two with one token.
    """
    ids: list[int] = []
    for label, added in zip(verbalizers, _added_tokens(tokenizer, template, verbalizers), strict=True):
        if added is None or len(added) != 1:
            pieces = "other tokens with it" if added is None else tokenizer.convert_ids_to_tokens(added)
            raise LabelTokenError(
                f"label {label!r} must be one token after the prompt, this tokenizer makes it {pieces}: "
                "choose a shorter label word and map your data's label to it, or read whole texts (label_sequences)"
            )
        if added[0] in ids:
            raise LabelTokenError(
                f"labels {verbalizers[ids.index(added[0])]!r} and {label!r} collide: both are token {added[0]}"
            )
        ids.append(added[0])
    return ids


def resolve_label_sequences(
    tokenizer: Any, template: PromptTemplate, verbalizers: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """Return the tokens that each verbalizer adds to the end of the template's text, in order.

    One label may begin with another one's tokens: their scores are compared, and both are possible.

    Raises:
        LabelTokenError: fewer than two verbalizers, one that adds no token or changes those of the text before it, or
            two with the same tokens.
    """
    sequences: list[tuple[int, ...]] = []
    for label, added in zip(verbalizers, _added_tokens(tokenizer, template, verbalizers), strict=True):
        if not added:
            raise LabelTokenError(
                f"label {label!r} must add tokens after the prompt and leave the prompt's own as they are: begin it "
                "with a space, or end the template's text otherwise"
            )
        if tuple(added) in sequences:
            first = verbalizers[sequences.index(tuple(added))]
            raise LabelTokenError(f"labels {first!r} and {label!r} collide: both are the tokens {added}")
        sequences.append(tuple(added))
    return tuple(sequences)


def _added_tokens(tokenizer: Any, template: PromptTemplate, verbalizers: Sequence[str]) -> list[list[int] | None]:
    """Return the tokens of each verbalizer after the template's text; None where the text's own tokens change."""
    if len(verbalizers) < 2:
        raise LabelTokenError(f"a classifier needs at least two labels, got {list(verbalizers)}")
    tail = _PLACEHOLDER.split(template.text)[-1] or ":"
    head = tokenizer.encode(tail, add_special_tokens=False)
    whole = [tokenizer.encode(tail + label, add_special_tokens=False) for label in verbalizers]
    return [ids[len(head) :] if ids[: len(head)] == head else None for ids in whole]
