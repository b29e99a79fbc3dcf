"""A row's named values as an example: the template's fields, and the label if the row has one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from laplora.errors import DataError, InvalidInputError
from laplora.files.strict_json import strict_json
from laplora.prompts.examples import Example
from laplora.prompts.model_answers import model_log_probs
from laplora.prompts.templates import MODEL_PROBS, PromptTemplate, render

_OPTION_COLUMN = re.compile(r"option([1-9][0-9]?)$")
_WHOLE = re.compile(r"[+-]?[0-9]+\.0+")
#: Longer values of a label field are more likely text in the wrong field, which must not reach a log.
_SHOWN_LABEL_CHARS = 32
#: Probabilities of a soft label may sum to 1 but for this, as rounded ones do, and are then divided by their sum.
SUM_TOLERANCE = 1e-3


def row_id(values: Mapping[str, Any], place: str) -> str:
    """Return a row's own ``id``, text or a whole number; without one the place that it was read from."""
    given = values.get("id")
    is_id = isinstance(given, str | int) and not isinstance(given, bool) and str(given).strip()
    return str(given) if is_id else place


def example_of(
    values: Mapping[str, Any],
    id: str,
    template: PromptTemplate,
    labels: Sequence[str],
    label_field: str | None = None,
    label_map: Mapping[str, str] | None = None,
    *,
    several: bool = False,
    groups: str | None = None,
) -> Example:
    """Return a row as an example; fields that the template does not name are ignored.

    Args:
        values: of the row, by name: text, numbers, and for choices a list, its JSON, or ``option1``, ``option2``...
        labels: in class order.
        label_field: name of the label, which may be soft: probabilities by label, those not named 0. None: the row has
            none, and its label is -1.
        label_map: from the label as the row has it to one of ``labels``; what it does not name is a label already.
        several: whether the label field holds a list, of any number of labels.
        groups: name of the field that has the row's group; None, or an empty one: the row is of none.

    Raises:
        DataError: a field or the label missing, or one that cannot be used.
    """
    fields, class_count = _fields(values, template, labels)
    group = None if groups is None else _group(values.get(groups), groups)
    if label_field is None:
        return Example(id, fields, -1, class_count, group=group)
    if several:
        return Example(id, fields, -1, class_count, _several(values.get(label_field), labels, label_field), group)
    names, target = label_map or {}, None
    soft = soft_shares(values.get(label_field), label_field, (*names, *labels))
    if soft is None:
        last = label = _label(values, labels, label_field, names)
    else:
        target = _target(soft, labels, label_field, names)
        label, last = target.index(max(target)), max(n for n, share in enumerate(target) if share)
    if last >= class_count:
        raise DataError(
            f"field {label_field!r} is {labels[last]!r}, but the row has {class_count} choices "
            f"({', '.join(labels[:class_count])})"
        )
    certain = target is None or target[label] == 1
    return Example(id, fields, label, class_count, group=group, target=None if certain else target)


def soft_label(value: Any, known: Collection[str] = ()) -> dict[Any, Any] | None:
    """Return the object of a soft label, probabilities by name, or of its JSON, as in a CSV cell; None for others."""
    if isinstance(value, str) and value.lstrip().startswith("{") and value.strip() not in known:
        try:
            value = strict_json(value)
        except (ValueError, RecursionError):
            return None  # refused as an unknown label
    return value if isinstance(value, dict) else None


def distribution(label: int, target: tuple[float, ...] | None, labels: Sequence[str]) -> str | dict[str, float]:
    """Return a label as a row has it: its name, or of a soft one the probabilities by name."""
    return labels[label] if target is None else {name: p for name, p in zip(labels, target, strict=True) if p}


def soft_shares(value: Any, label_field: str, known: Collection[str] = ()) -> dict[str, float] | None:
    """Return what a soft label leaves possible, by name, with a sum of 1; None for another label.

    Raises:
        DataError: what are no probabilities.
    """
    soft = soft_label(value, known)
    if soft is None:
        return None
    shares = dict[str, float]()
    for name, share in soft.items():
        if share is None:  # as tables write a label that the row does not name
            continue
        if isinstance(share, bool) or not isinstance(share, int | float) or not (math.isfinite(share) and share >= 0):
            raise DataError(f"field {label_field!r}: the probability of {_shown(name)} must be a number of 0 or more")
        text = str(label_text(name, known))
        shares[text] = shares.get(text, 0.0) + share
    total = math.fsum(shares.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise DataError(f"field {label_field!r}: the probabilities of a label sum to 1, these to {total:.4g}")
    return {name: share / total for name, share in shares.items() if share}


def _target(
    soft: Mapping[str, float], labels: Sequence[str], label_field: str, label_map: Mapping[str, str]
) -> tuple[float, ...]:
    """Return the probability of each label."""
    target = [0.0] * len(labels)
    for name, share in soft.items():
        word = label_map.get(name, name)
        if word not in labels:
            known = list(dict.fromkeys([*label_map, *labels]))
            raise DataError(f"field {label_field!r}: label {_shown(name)} is not among {known}")
        target[labels.index(word)] += share
    return tuple(target)


def _group(value: Any, groups: str) -> str | None:
    if not isinstance(value, str | int | float | None):
        raise DataError(f"field {groups!r} (the group) must be a text or a number, got {type(value).__name__}")
    return None if empty(value) else str(label_text(value))


def _fields(values: Mapping[str, Any], template: PromptTemplate, labels: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Return a row's template fields, and how many classes are possible for it."""
    fields: dict[str, Any] = {}
    for name in template.fields:
        fields[name] = _choices(values) if name == "choices" else values.get(name)
        if fields[name] is None:
            gone = (
                "null or nan: leave the row out" if name in values else f"missing; the row has {_shown_names(values)}"
            )
            raise DataError(f"field {name!r} is {gone}")
    try:
        if template.answered:
            fields[MODEL_PROBS] = _model_probs(values)
            model_log_probs(fields, labels)
        _, class_count = render(template, fields, labels)
    except InvalidInputError as error:
        raise DataError(str(error)) from None
    return fields, class_count


def _model_probs(values: Mapping[str, Any]) -> Any:
    """Return the other model's answer; in a table it is JSON."""
    given = values.get(MODEL_PROBS)
    if isinstance(given, str):
        try:
            return json.loads(given)
        except (ValueError, RecursionError):
            return None
    return given


def _choices(values: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return the choices of a row: a JSON array in ``choices``, or the fields ``option1``, ``option2`` and so on."""
    value = values.get("choices")
    if isinstance(value, str):  # a CSV cell
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, list):
            raise DataError("field 'choices' must hold a JSON array of strings, or use option1, option2, ...")
    if isinstance(value, list):
        return tuple(value)
    if value is not None:
        raise DataError("field 'choices' must be an array of strings")
    columns = {int(m.group(1)): n for n in values if (m := _OPTION_COLUMN.match(n))}
    options = []
    for number in range(1, max(columns, default=0) + 1):
        if number not in columns:  # closing the gap would shift the answers
            raise DataError(f"field 'option{number}' is missing, later options are there")
        options.append(values[columns[number]])
    while options and options[-1] in (None, ""):  # rows with fewer choices leave the last ones empty
        options.pop()
    return tuple(options) or None


def empty(value: Any) -> bool:
    """Return whether a value says nothing: null, blank, or a number that is none, which tables write as ``nan``."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan")
    return value is None or (isinstance(value, float) and math.isnan(value))


def label_text(value: Any, known: Collection[str] = ()) -> Any:
    """Return a label as its text: a whole number has no ``.0``, unless that is how it is known; others as they are.

    Tables write the numbers of a column with a gap as 0.0 and 1.0.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value) if isinstance(value, int | float) else value
    if not isinstance(text, str):
        return value
    text = text.strip()
    return text if text in known or not _WHOLE.fullmatch(text) else text.partition(".")[0]


def _label(values: Mapping[str, Any], labels: Sequence[str], label_field: str, label_map: Mapping[str, str]) -> int:
    known = list(dict.fromkeys([*label_map, *labels]))
    value = label_text(values.get(label_field), known)
    if value is None:
        if label_field in values:
            raise DataError(f"field {label_field!r} (the label) is null or nan: leave the row out")
        raise DataError(
            f"field {label_field!r} (the label) is missing; the row has {_shown_names(values)}: if the label has "
            "another name, give it as label_field"
        )
    if not isinstance(value, str):
        if isinstance(value, list):
            raise DataError(
                f"field {label_field!r} must be one label, got a list: several labels need a model with a "
                "classification head whose configuration has problem_type multi_label_classification"
            )
        raise DataError(f"field {label_field!r} must be a string, a number, true or false, or probabilities by label")
    if not value:
        raise DataError(f"field {label_field!r} (the label) is empty")
    word = label_map.get(value, value)
    if word not in labels:
        meant = next((one for one in known if one.casefold() == value.casefold()), None)
        hint = "" if meant is None else f": did you mean {meant!r}? Write it alike, or give a label_map"
        raise DataError(f"field {label_field!r} is {_shown(value)}, expected one of {known}{hint}")
    return labels.index(word)


def _several(value: Any, labels: Sequence[str], label_field: str) -> tuple[int, ...]:
    """Return the indices of the labels in a row's list of names, ascending."""
    if value is None:
        raise DataError(f"field {label_field!r} (the labels) is missing: give a list, which may be empty")
    if isinstance(value, dict):
        raise DataError(
            f"field {label_field!r}: probabilities by label are of one right label, and of this model several may be: "
            "give the list of those that are"
        )
    if not isinstance(value, list):
        raise DataError(
            f"field {label_field!r} must be a list of labels, since the model has a probability for each: put a single "
            "one into a list"
        )
    for one in value:
        if not isinstance(one, str) or one not in labels:
            raise DataError(f"field {label_field!r}: label {_shown(one)} is not among {list(labels)}")
    return tuple(sorted({labels.index(one) for one in value}))


def _shown_names(values: Mapping[str, Any]) -> list[str]:
    return sorted(str(name)[:64] for name in values)[:16]


def _shown(value: Any) -> str:
    if not isinstance(value, str | int | float):
        return f"of type {type(value).__name__}"
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_LABEL_CHARS + 2 else f"a text of {len(str(value))} characters"
