"""The question that an artifact answers, as clients of decision models ask it, and the inputs that a state makes.

A request's question is compared with an artifact's word by word: an artifact of one task answers its own question only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from laplora.errors import ConfigError, InvalidInputError
from laplora.prompts.templates import PromptTemplate

#: Fewest and most options of a question.
FEWEST_OPTIONS: Final = 2
MOST_OPTIONS: Final = 255
#: The field of a template that is all of a state.
STATE: Final = "state"
_REMOTE = PromptTemplate("remote", 1, f"{{{STATE}}}")
QuestionType = Literal["choice", "noul", "score"]
#: A text, or a structure that ``as_text`` writes.
Content = str | dict[str, Any] | list[Any]
#: Options as a request has them: by name its description, or the levels in order, or ``true`` and ``false``.
Criteria = Mapping[str, Content | None] | Sequence[Content] | None


def as_text(value: Any) -> str:
    """Return a JSON value as a prompt has it: a text as it is, anything else as JSON in one line, keys sorted."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


class Question(BaseModel):
    """The question that an artifact answers, as whoever fitted it declares it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: QuestionType = Field(
        "choice", description="choice: one of the labels; noul: yes or no; score: the labels are levels, in order"
    )
    instructions: Content | None = Field(None, description="the question, word for word as clients ask it; null: none")
    options: dict[str, Content | None] = Field(
        {}, description="by label its description, word for word; null, or left out: none (a level is then the label)"
    )
    yes_label: str | None = Field(None, description="of a noul: the label that says yes")
    state: dict[str, str | None] = Field(
        {},
        description="by field of the template the key of a client's state that fills it; null: the whole state, as "
        "text; empty: the state has the template's fields, or is the text of its only one",
    )


@dataclass(frozen=True)
class AnsweredQuestion:
    """The question of an artifact with its template and labels: which requests it answers, and by which inputs.

    Attributes:
        asked: as declared, or as ``answered_question`` derives it.
    """

    asked: Question
    template: PromptTemplate
    labels: tuple[str, ...]

    @property
    def takes_options(self) -> bool:
        """Whether a request brings options of its own, as a template with choices takes them."""
        return self.template.takes_choices

    @property
    def option_counts(self) -> tuple[int, int]:
        """The fewest and the most options that a request may have."""
        count = self.template.option_count if self.takes_options else len(self.labels)
        return (count, count) if count else (FEWEST_OPTIONS, min(MOST_OPTIONS, len(self.labels)))

    @property
    def criteria(self) -> dict[str, Content | None] | list[Content] | None:
        """The options as a request has to have them; None where it brings its own."""
        if self.takes_options:
            return None
        described = [self.asked.options.get(label) for label in self.labels]
        if self.asked.type == "score":
            return [label if text is None else text for label, text in zip(self.labels, described, strict=True)]
        return dict(zip(self.keys(None), described, strict=True))

    def keys(self, criteria: Criteria) -> list[str]:
        """Return the names of a request's options in the order of the labels: those that its answer's numbers have."""
        if self.takes_options:
            return list(map(str, criteria or ()))
        if self.asked.type == "score":
            return [str(level) for level in range(len(self.labels))]
        if self.asked.type == "noul":
            return ["true" if label == self.asked.yes_label else "false" for label in self.labels]
        return list(self.labels)

    def matches(self, type: QuestionType, instructions: Content | None, criteria: Criteria) -> bool:
        """Return whether a request asks this question: options that it brings along are not compared."""
        if type != self.asked.type or _compared(instructions) != _compared(self.asked.instructions):
            return False
        return self.takes_options or _options(criteria, type) == _options(self.criteria, type)

    def choices(self, criteria: Criteria) -> dict[str, list[str]]:
        """Return the field of a template that takes a request's options: each one's description, else its name."""
        if not self.takes_options or not isinstance(criteria, Mapping):
            return {}
        return {"choices": [text if isinstance(text, str) else key for key, text in criteria.items()]}

    def state_fields(self, state: Content) -> dict[str, str]:
        """Return the template's other fields, which a state fills, as texts.

        Raises:
            InvalidInputError: a state that does not fill them.
        """
        names, keys = text_fields(self.template), self.asked.state
        parts, values = state if isinstance(state, dict) else {}, dict[str, Any]()
        if keys and all(key is None or key in parts for key in keys.values()):
            values = {name: state if key is None else parts[key] for name, key in keys.items()}
        elif parts and set(parts) == set(names):
            values = parts
        elif not isinstance(state, dict) and len(names) == 1:
            values = {names[0]: state}
        if not values or any(value is None for value in values.values()):
            wanted = [key for key in keys.values() if key is not None] or list(names)
            alone = ", or the text of its only field" if len(names) == 1 else ""
            raise InvalidInputError(
                f"the state is an object with {wanted} here, none of them null{alone}", field="state"
            )
        return {name: as_text(value) for name, value in values.items()}


def text_fields(template: PromptTemplate) -> list[str]:
    """Return the fields of a template that a state fills."""
    return [name for name in template.fields if name != "choices"]


def answered_question(
    declared: Question | None, template: PromptTemplate, labels: Sequence[str], *, several: bool
) -> AnsweredQuestion | None:
    """Return the question that an artifact answers: without a declared one a choice among its labels, without
    descriptions, whose instructions are the template's text.

    Args:
        several: whether several labels of a row may be right.

    Returns:
        None: no question of this kind is answered by several labels, or by more than ``MOST_OPTIONS``.
    """
    if several or (len(labels) > MOST_OPTIONS and not template.takes_choices):
        return None
    return AnsweredQuestion(declared or Question(instructions=template.text), template, tuple(labels))


def question_of_body(body: Mapping[str, Any]) -> AnsweredQuestion:
    """Return a question as a request writes it, about a state that is the field ``STATE``.

    The labels of a choice are its options, of a noul ``false`` and ``true``, of a score the numbers of its levels.

    Raises:
        ConfigError: no such question.
    """
    kind, criteria = body.get("type"), body.get("criteria")
    options: dict[str, Any] = {}
    if kind == "noul" and isinstance(criteria, Mapping | None):
        options = {name: (criteria or {}).get(name) for name in ("false", "true")}
    elif kind == "choice" and isinstance(criteria, Mapping):
        options = dict(criteria)
    elif kind == "score" and isinstance(criteria, Sequence) and not isinstance(criteria, str):
        options = {str(level): text for level, text in enumerate(criteria)}
    if not FEWEST_OPTIONS <= len(options) <= MOST_OPTIONS or set(body) - {"type", "instructions", "criteria"}:
        raise ConfigError(
            "a question has a type, instructions and criteria: of a choice {option: description}, of a score [level, "
            f"...], {FEWEST_OPTIONS} to {MOST_OPTIONS} of either; of a noul none, or what is true and what is false"
        )
    try:
        declared = Question(
            type=kind,  # type: ignore[arg-type]
            instructions=body.get("instructions"),
            options=options,
            yes_label="true" if kind == "noul" else None,
            state={STATE: None},
        )
    except ValueError as error:
        raise ConfigError(f"a question cannot be used: {error}") from None
    return AnsweredQuestion(declared, _REMOTE, tuple(options))


def check_question(declared: Question, template: PromptTemplate, labels: Sequence[str], *, several: bool) -> None:
    """Raise ConfigError for a question that an artifact with this template and these labels cannot answer."""
    fields, odd = text_fields(template), [label for label in declared.options if label not in labels]
    if answered_question(declared, template, labels, several=several) is None:
        raise ConfigError(f"question: several labels, or more than {MOST_OPTIONS}, answer none: leave it out")
    if template.takes_choices and (declared.type != "choice" or declared.options):
        raise ConfigError("question: of a template with {choices} it is a choice, and its clients name the options")
    if odd:
        raise ConfigError(f"question: options has {odd[:4]}, the labels are {list(labels)[:8]}")
    is_noul = declared.type == "noul"
    if (is_noul and len(labels) != 2) or declared.yes_label not in (labels if is_noul else [None]):
        raise ConfigError("question: a noul has two labels, and yes_label names one of them; no other type has it")
    if declared.state and set(declared.state) != set(fields):
        raise ConfigError(
            f"question: state has {sorted(declared.state)}, and the template the fields {fields}: name each"
        )


def _compared(value: Content | None) -> str | None:
    return None if value is None else as_text(value)


def _options(criteria: Criteria, type: QuestionType) -> dict[str, str | None] | list[str | None]:
    """Return options in the form that two equal questions share: a side of a noul may be left out."""
    if type == "noul":
        criteria = {"true": None, "false": None, **(criteria if isinstance(criteria, Mapping) else {})}
    if isinstance(criteria, Mapping):
        return {key: _compared(text) for key, text in criteria.items()}
    return [_compared(text) for text in criteria or ()]
