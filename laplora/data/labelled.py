"""Rows of a file as examples of a task: its prompt, its labels, and each row's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from laplora.data.records import Record, RowError, each
from laplora.errors import DataError
from laplora.prompts.examples import Example
from laplora.prompts.groups import question_of
from laplora.prompts.labelled import empty, example_of, row_id
from laplora.prompts.templates import Cut, PromptTemplate, render


@dataclass(frozen=True)
class Task:
    """A question and its possible answers.

    Attributes:
        labels: their names, in class order.
        verbalizers: the text after the prompt that stands for each label; None: its name, as the template writes it.
    """

    name: str
    template: PromptTemplate
    labels: tuple[str, ...]
    verbalizers: tuple[str, ...] | None = None

    def cutting(self, field: str, side: Literal["left", "right"]) -> Task:
        """Return the task whose prompts lose text of a field where they are too long; ConfigError: no such text."""
        return replace(self, template=replace(self.template, cut=Cut(field, side)))

    def prompt(self, example: Example) -> str:
        return render(self.template, example.fields, self.labels)[0]

    def question(self, example: Example) -> str:
        """Return what two rows share that are the same question: the prompt, up to case and white space."""
        return question_of(self.template, self.labels, example)


def without_gaps(
    place: Path | str,
    records: Sequence[Record],
    task: Task,
    label_field: str | None,
    label_map: Mapping[str, str],
    columns: Mapping[str, str],
) -> tuple[list[Record], list[str]]:
    """Return the records that have all their texts and their label, and a line about the others where there are any.

    A field has a gap where it is there and empty: null, blank, or ``nan``. One that is not there at all is no gap.

    Raises:
        DataError: every record has a gap.
    """
    names = [columns.get(field, field) for field in task.template.fields if field != "choices"]
    known = {*task.labels, *label_map}

    def gap(record: Record) -> str | None:
        values = record.values
        if label_field in values and empty(values[label_field]) and str(values[label_field]) not in known:
            return label_field
        return next((name for name in names if name in values and empty(values[name])), None)

    gaps = {record.line: name for record in records if (name := gap(record)) is not None}
    if not gaps:
        return list(records), []
    kept = [record for record in records if record.line not in gaps]
    fields = sorted(set(gaps.values()))
    if not kept:
        raise DataError(
            f"{place}: every row has an empty field ({' or '.join(fields)}): name others by columns or label_field"
        )
    shown = ", ".join(map(str, list(gaps)[:5])) + (", ..." if len(gaps) > 5 else "")
    what = f"{' or '.join(fields)} is empty or nan: {len(gaps)} of {len(records)} rows (line {shown})"
    return kept, [f"{place}: left out, as {what}"]


def examples_of(
    place: Path | str,
    records: Sequence[Record],
    task: Task,
    label_field: str,
    label_map: Mapping[str, str],
    columns: Mapping[str, str],
    *,
    several: bool = False,
    named: Callable[[Any], Any] | None = None,
    groups: str | None = None,
) -> tuple[Example, ...]:
    """Return records as examples, in order.

    A row's ``id``, if it has one, becomes the example's; other fields that the template does not name are ignored.

    Args:
        place: what they are from, as errors call it.
        label_map: as of ``example_of``; several: whether the label field holds a list, of any number of labels.
        columns: by field of the template the column that has it, where it is called otherwise.
        named: gives the name of what the label field holds, where that may be a number.
        groups: field that has a row's group, as of ``example_of``.

    Raises:
        DataError: with the file, and line and field of the first problems.
    """

    check_groups(place, groups, (record.values for record in records))

    def labelled(record: Record) -> Example:
        values = record.values
        if columns:
            other_columns = {name: value for name, value in values.items() if name not in columns}
            values = other_columns | {field: values[column] for field, column in columns.items() if column in values}
        if named is not None and label_field in values:
            values = {**values, label_field: named(values[label_field])}
        record = Record(record.line, values)
        return labelled_example(place, record, task, label_field, label_map, several=several, groups=groups)

    return tuple(each(place, records, labelled))


def check_groups(place: Path | str, groups: str | None, rows: Iterable[Mapping[str, Any]]) -> None:
    """Raise DataError where no row has the field of the groups, as by a slip of its name."""
    if groups is not None and not any(groups in row for row in rows):
        raise DataError(
            f"{place}: no row has the field {groups!r}, which groups names: correct the name, or leave it out"
        )


def labelled_example(
    place: Path | str,
    record: Record,
    task: Task,
    label_field: str,
    label_map: Mapping[str, str],
    *,
    several: bool = False,
    groups: str | None = None,
) -> Example:
    """Return one record as an example; arguments as of ``examples_of``. RowError: it is none."""
    name = place.name if isinstance(place, Path) else place
    options: dict[str, Any] = {"several": several, "groups": groups}
    try:
        identity = row_id(record.values, f"{name}:{record.line}")
        return example_of(record.values, identity, task.template, task.labels, label_field, label_map, **options)
    except DataError as error:
        raise RowError(record.line, str(error)) from None
