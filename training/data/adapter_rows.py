"""The task of an adapter that was trained elsewhere: its prompt, its labels, and a file's rows as ``laplora.fit`` takes
them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from laplora.data.labelled import Task, examples_of, without_gaps
from laplora.data.records import read_records
from laplora.errors import ConfigError, LaploraWarning, first_line
from laplora.fitting.rows import named_label, named_labels
from laplora.prompts.labelled import distribution, empty, label_text, soft_label
from laplora.prompts.templates import PromptTemplate
from training.data.files import file_template


@dataclass(frozen=True)
class HeadTask:
    """The task of a model with a classification head, by its configuration.

    Attributes:
        classes: outputs of its head; names: of them, in order, None where it has none.
        several: whether several labels of a row may be right; None where it does not say.
    """

    classes: int
    names: tuple[str, ...] | None
    several: bool | None


def template_of(text: str) -> PromptTemplate:
    """Return the template of a name, ``@FILE`` with its text, or the text; ConfigError where there is none such."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--template {text}: cannot be read as UTF-8 text ({first_line(error)})") from None
    if "{" in text:
        spaced = text[-1:].isspace()
        return PromptTemplate("custom", 1, text, label_prefix="" if spaced else " ").cutting_texts()
    return file_template(text)


def label_values(path: Path, label_field: str) -> tuple[tuple[str, ...], bool]:
    """Return the labels of a file's rows, sorted, and whether any row has a list of them.

    Values that are no label are ignored here and refused when the rows are read.
    """
    values = [record.values.get(label_field) for record in read_records(path)]
    several = any(isinstance(value, list) for value in values)
    named = (soft_label(value) or value for value in values)
    flat = [one for value in named for one in (value if isinstance(value, list | dict) else [value])]
    texts = (label_text(one) for one in flat if not empty(one))
    distinct = tuple(sorted({text for text in texts if isinstance(text, str)}))
    alike: dict[str, str] = {}
    for text in distinct:
        if (other := alike.setdefault(text.casefold(), text)) != text:
            raise ConfigError(
                f"{path}: field {label_field!r} has the labels {other!r} and {text!r}, which differ in case alone: "
                "write them alike, or name both by --labels"
            )
    return distinct, several


def labels_of_rows(path: Path, label_field: str) -> tuple[str, ...]:
    """Return the labels of a file's rows, sorted; ConfigError for fewer than two."""
    labels, _ = label_values(path, label_field)
    if len(labels) < 2:
        raise ConfigError(f"{path}: field {label_field!r} has {len(labels)} labels: name it by --label-field")
    return labels


def labels_of_head(
    path: Path, label_field: str, head: HeadTask, given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], bool]:
    """Return the labels of a head's outputs, in their order, and whether several of a row's may be right.

    They are those given; else those that the model names; else the numbers of the outputs, where rows have numbers. The
    order of names in a file says nothing about the outputs.

    Raises:
        ConfigError: as many as the head has no outputs, or none that the rows can be told by.
    """
    labels, lists = label_values(path, label_field)
    several = lists if head.several is None else head.several
    if given is not None:
        if len(given) != head.classes:
            raise ConfigError(
                f"--labels names {len(given)} labels, the head has {head.classes} classes: name every class, in the "
                "order of the model's outputs"
            )
        return given, several
    if head.names is not None and len(head.names) == head.classes:
        return head.names, several
    numbers = tuple(map(str, range(head.classes)))
    if labels and set(labels) <= set(numbers):
        return numbers, several
    raise ConfigError(
        f"the model does not name the {head.classes} outputs of its head (id2label), and the {len(labels)} labels of "
        f"{path} are no numbers from 0 to {head.classes - 1}: name them by --labels, in the order of the outputs"
    )


def adapter_rows(
    path: Path,
    task: Task,
    label_field: str,
    *,
    of_head: bool = False,
    several: bool = False,
    groups: str | None = None,
) -> list[dict[str, Any]]:
    """Return a file's rows as ``laplora.fit`` takes them.

    Args:
        of_head: whether a label may be the number of an output; several: whether a row has a list of labels.
        groups: field that has a row's group, as of ``laplora.fit``.

    Raises:
        DataError: rows that cannot be used, by file and line.
    """
    if label_field in task.template.fields:
        raise ConfigError(f"the label field {label_field!r} is also a field of --template, which would hold the answer")
    named = partial(_named, task.labels) if of_head else None
    records, lines = without_gaps(path, read_records(path), task, None if several else label_field, {}, {})
    for line in lines:
        warnings.warn(line, LaploraWarning, stacklevel=2)
    examples = examples_of(path, records, task, label_field, {}, {}, several=several, named=named, groups=groups)
    return [
        {
            "id": e.id,
            **e.fields,
            **({} if groups is None else {groups: e.group}),
            label_field: distribution(e.label, e.target, task.labels)
            if e.present is None
            else [task.labels[number] for number in e.present],
        }
        for e in examples
    ]


def _named(labels: Sequence[str], value: Any) -> Any:
    """Return names for what a label field holds; a CSV file has numbers as text."""
    if isinstance(value, list):
        return named_labels(value, labels, vectors=True)
    if isinstance(value, dict):
        return {_named(labels, one): share for one, share in value.items()}
    if isinstance(value, str) and value.strip().isdecimal() and value.strip() not in labels:
        value = int(value)
    return named_label(value, labels)
