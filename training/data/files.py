"""Examples from the user's files, through a prompt template and a list of label words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from laplora.errors import ConfigError, InvalidInputError
from laplora.files import file_sha256
from laplora.prompts.templates import TEMPLATES, PromptTemplate, render
from training.data.examples import ROLES, Example, Pool, Role, Source, Task
from training.data.tables import Record, RowError, each, read_records

_OPTION_COLUMN = re.compile(r"option([1-9][0-9]?)$")
#: Longer values of a label field are more likely text in the wrong field, which must not reach a log.
_SHOWN_LABEL_CHARS = 32


class SplitPaths(BaseModel):
    """One file per split. A split without a file is taken out of ``train``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Path = Field(description="JSON Lines or CSV file, relative to the working directory")
    calibration: Path | None = Field(default=None, description="the same; null: rows of train")
    test: Path | None = Field(default=None, description="the same; null: rows of train")


class InlineTemplate(BaseModel):
    """A prompt template written in the config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64, description="what the artifact records")
    version: int = Field(default=1, ge=1, description="raise it whenever the text changes")
    text: str = Field(
        min_length=1,
        description="the prompt, with {field} for each field of a row, or {choices} or {option1}, {option2} and so on "
        "for a list of choices; {{ and }} are literal braces. End it where the label word follows",
    )
    choice: str = Field(default="{label}. {text}", description="how one choice is written")
    choice_separator: str = Field(default="\n", description="what stands between two choices")


def file_template(template: str | InlineTemplate) -> PromptTemplate:
    """Return the template that a config names or spells out; ConfigError: an unknown one, or no placeholder."""
    if isinstance(template, InlineTemplate):
        return PromptTemplate(**template.model_dump())
    if template not in TEMPLATES:
        raise ConfigError(f"no template is called {template!r}: known are {sorted(TEMPLATES)}, or write one inline")
    return TEMPLATES[template]


def read_files(paths: SplitPaths | Path, task: Task, label_field: str, label_map: Mapping[str, str]) -> Source:
    """Return the rows of one file, or of one file per split.

    Raises:
        ConfigError: a file given twice, or a label field that the prompt would hold.
        DataError: a file or rows that cannot be used; the message names file, line and field.
    """
    if label_field in task.template.fields:
        raise ConfigError(
            f"label_field {label_field!r} is also a field of template {task.template.name!r}: "
            "the prompt would hold the answer"
        )
    files: dict[Path, tuple[Role, ...]] = {}
    if isinstance(paths, SplitPaths):
        given: dict[Role, Path | None] = {"calibration": paths.calibration, "test": paths.test}
        files[paths.train] = tuple(role for role in ROLES if given.get(role) is None)
        for role, path in given.items():
            if path in files:
                raise ConfigError(f"path names {path} for more than one split: give one file alone to have it split")
            if path is not None:
                files[path] = (role,)
    else:
        files[paths] = ROLES
    pools = tuple(
        Pool(str(path), read_examples(path, task, label_field, label_map), roles) for path, roles in files.items()
    )
    detail = ", ".join(f"{path.name} (sha256 {file_sha256(path)})" for path in files)
    return Source(task, pools, "file", detail)


def read_examples(path: Path, task: Task, label_field: str, label_map: Mapping[str, str]) -> tuple[Example, ...]:
    """Return a file's rows as examples, in order.

    A row's ``id``, if it has one, becomes the example's; other fields that the template does not name are ignored.

    Raises:
        DataError: with the file, and line and field of the first problems.
    """

    def labelled(record: Record) -> Example:
        fields, class_count = _fields(record, task)
        label = _label(record, task, label_field, label_map)
        if label >= class_count:
            raise RowError(
                record.line,
                f"field {label_field!r} is {task.labels[label]!r}, but the row has {class_count} choices "
                f"({', '.join(task.labels[:class_count])})",
            )
        return Example(_id(record, path), fields, label, class_count)

    return tuple(each(path, read_records(path), labelled))


def read_inputs(path: Path, task: Task) -> tuple[Example, ...]:
    """Return a file's rows as examples without a label (-1), otherwise as ``read_examples`` does."""

    def unlabelled(record: Record) -> Example:
        fields, class_count = _fields(record, task)
        return Example(_id(record, path), fields, -1, class_count)

    return tuple(each(path, read_records(path), unlabelled))


def _id(record: Record, path: Path) -> str:
    given = record.values.get("id")
    is_id = isinstance(given, str | int) and not isinstance(given, bool) and str(given).strip()
    return str(given) if is_id else f"{path.name}:{record.line}"


def _fields(record: Record, task: Task) -> tuple[dict[str, Any], int]:
    """Return a row's template fields, and how many classes are possible for it."""
    fields: dict[str, Any] = {}
    for name in task.template.fields:
        fields[name] = _choices(record) if name == "choices" else record.values.get(name)
        if fields[name] is None:
            present = sorted(str(n)[:64] for n in record.values)[:16]
            raise RowError(record.line, f"field {name!r} is missing; the row has {present}")
    try:
        _, class_count = render(task.template, fields, task.labels)
    except InvalidInputError as error:
        raise RowError(record.line, str(error)) from None
    return fields, class_count


def _choices(record: Record) -> tuple[Any, ...] | None:
    """Return the choices of a row: a JSON array in ``choices``, or the fields ``option1``, ``option2`` and so on."""
    value = record.values.get("choices")
    if isinstance(value, str):  # a CSV cell
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, list):
            raise RowError(
                record.line, "field 'choices' must hold a JSON array of strings, or use option1, option2, ..."
            )
    if isinstance(value, list):
        return tuple(value)
    if value is not None:
        raise RowError(record.line, "field 'choices' must be an array of strings")
    columns = {int(m.group(1)): n for n in record.values if (m := _OPTION_COLUMN.match(n))}
    options = []
    for number in range(1, max(columns, default=0) + 1):
        if number not in columns:  # closing the gap would shift the answers
            raise RowError(record.line, f"field 'option{number}' is missing, later options are there")
        options.append(record.values[columns[number]])
    while options and options[-1] in (None, ""):  # rows with fewer choices leave the last ones empty
        options.pop()
    return tuple(options) or None


def _label(record: Record, task: Task, label_field: str, label_map: Mapping[str, str]) -> int:
    value = record.values.get(label_field)
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, int | float):
        value = str(value)
    if value is None:
        raise RowError(record.line, f"field {label_field!r} (the label) is missing")
    if not isinstance(value, str):
        kind = "array" if isinstance(value, list) else "object"
        raise RowError(record.line, f"field {label_field!r} must be a string, a number, true or false, got an {kind}")
    value = value.strip()
    if not value:
        raise RowError(record.line, f"field {label_field!r} (the label) is empty")
    word = label_map.get(value) if label_map else value
    if word not in task.labels:
        known = sorted(label_map) if label_map else list(task.labels)
        shown = repr(value) if len(value) <= _SHOWN_LABEL_CHARS else f"a text of {len(value)} characters"
        raise RowError(record.line, f"field {label_field!r} is {shown}, expected one of {known}")
    return task.labels.index(word)
