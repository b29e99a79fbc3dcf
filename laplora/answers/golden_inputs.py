"""Golden inputs: whose recorded answers an artifact brings along, and what their texts tell of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from laplora.answers.golden import MAX_ANSWERS, GoldenSource
from laplora.errors import ConfigError, InvalidInputError
from laplora.prompts.model_answers import made_up_answer
from laplora.prompts.templates import MODEL_PROBS, PromptTemplate, render

#: Inputs that a user gives; ``calibration``: texts of calibration rows may leave with the artifact; None: synthetic.
GoldenInputs = Sequence[Mapping[str, Any]] | Literal["calibration"] | None
#: How many there are where nobody gives them: each is a pass of every predictive before the artifact serves.
COUNT = 4


def golden_inputs(
    given: GoldenInputs, template: PromptTemplate, labels: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], GoldenSource]:
    """Return the inputs whose answers an artifact records, and where they are from.

    Args:
        rows: calibration rows, of which the first few are taken where the user says so.

    Raises:
        ConfigError: inputs that are none, too many, or not what the template takes.
    """
    if given is None or len(given) == 0:
        return synthetic_inputs(template, labels), "synthetic"
    if isinstance(given, str):
        if given != "calibration":
            raise ConfigError(f"golden_inputs must be inputs, or 'calibration' to publish rows, got {given!r}")
        return [dict(row) for row in rows[:COUNT]], "calibration"
    inputs = [dict(one) for one in given]
    if len(inputs) > MAX_ANSWERS:
        raise ConfigError(f"golden_inputs: expected at most {MAX_ANSWERS}, got {len(inputs)}")
    for number, one in enumerate(inputs):
        try:
            render(template, one, labels)
        except InvalidInputError as error:
            raise ConfigError(f"golden_inputs.{number}: {error}") from None
    return inputs, "given"


def synthetic_inputs(template: PromptTemplate, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return inputs that are made of the template's fields and the labels alone, each about another label."""
    count = min(COUNT, len(labels))
    about = [labels[i * len(labels) // count] for i in range(count)]
    most = template.option_count or len(labels)
    return [
        {
            name: [f"Option {i}." for i in range(1, most + 1)] if name == "choices" else f"A {name} about {label}."
            for name in template.fields
        }
        | ({MODEL_PROBS: made_up_answer(labels, label)} if template.answered else {})
        for label in about
    ]
