"""Examples from the user's files, through a prompt template and a list of label words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from laplora.errors import ConfigError, DataError
from laplora.files import file_sha256
from laplora.prompts.examples import Example
from laplora.prompts.labelled import example_of, row_id
from laplora.prompts.templates import TEMPLATES, PromptTemplate
from training.data.examples import ROLES, Pool, Role, Source, Task
from training.data.tables import Record, RowError, each, read_records


class SplitPaths(BaseModel):
    """One file per split. A split without a file is taken out of ``train``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Path = Field(description="JSON Lines, CSV or Parquet file, relative to the working directory")
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


def check_label_field(task: Task, label_field: str, columns: Mapping[str, str]) -> None:
    """Raise ConfigError where the prompt would hold the label, or a column is named for a field that it has not."""
    if unknown := sorted(columns.keys() - set(task.template.fields)):
        raise ConfigError(
            f"columns names {unknown}: template {task.template.name!r} has the fields {sorted(task.template.fields)}"
        )
    if label_field in {columns.get(field, field) for field in task.template.fields}:
        raise ConfigError(
            f"label_field {label_field!r} is also a field of template {task.template.name!r}: "
            "the prompt would hold the answer"
        )


def read_files(
    paths: SplitPaths | Path,
    task: Task,
    label_field: str,
    label_map: Mapping[str, str],
    columns: Mapping[str, str] | None = None,
) -> Source:
    """Return the rows of one file, or of one file per split.

    Args:
        columns: as of ``examples_of``.

    Raises:
        ConfigError: a file given twice, or a label field that the prompt would hold.
        DataError: a file or rows that cannot be used; the message names file, line and field.
    """
    columns = columns or {}
    check_label_field(task, label_field, columns)
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
        Pool(str(path), examples_of(path, read_records(path), task, label_field, label_map, columns), roles)
        for path, roles in files.items()
    )
    detail = ", ".join(f"{path.name} (sha256 {file_sha256(path)})" for path in files)
    return Source(task, pools, "file", detail)


def read_examples(
    path: Path,
    task: Task,
    label_field: str,
    label_map: Mapping[str, str],
    *,
    several: bool = False,
    named: Callable[[Any], Any] | None = None,
) -> tuple[Example, ...]:
    """Return a file's rows as examples, in order; arguments and errors as of ``examples_of``."""
    return examples_of(path, read_records(path), task, label_field, label_map, {}, several=several, named=named)


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
) -> tuple[Example, ...]:
    """Return records as examples, in order.

    A row's ``id``, if it has one, becomes the example's; other fields that the template does not name are ignored.

    Args:
        place: what they are from, as errors call it.
        label_map: as of ``example_of``; several: whether the label field holds a list, of any number of labels.
        columns: by field of the template the column that has it, where it is called otherwise.
        named: gives the name of what the label field holds, where that may be a number.

    Raises:
        DataError: with the file, and line and field of the first problems.
    """

    def labelled(record: Record) -> Example:
        values = record.values
        if columns:
            values = {**values, **{field: values.get(column) for field, column in columns.items()}}
        if named is not None and label_field in values:
            values = {**values, label_field: named(values[label_field])}
        return labelled_example(place, Record(record.line, values), task, label_field, label_map, several=several)

    return tuple(each(place, records, labelled))


def labelled_example(
    place: Path | str,
    record: Record,
    task: Task,
    label_field: str,
    label_map: Mapping[str, str],
    *,
    several: bool = False,
) -> Example:
    """Return one record as an example; arguments as of ``examples_of``. RowError: it is none."""
    with _on_line(record):
        return example_of(
            record.values, _id(record, place), task.template, task.labels, label_field, label_map, several=several
        )


def read_inputs(path: Path, task: Task) -> tuple[Example, ...]:
    """Return a file's rows as examples without a label (-1), otherwise as ``read_examples`` does."""

    def unlabelled(record: Record) -> Example:
        with _on_line(record):
            return example_of(record.values, _id(record, path), task.template, task.labels)

    return tuple(each(path, read_records(path), unlabelled))


def _id(record: Record, place: Path | str) -> str:
    name = place.name if isinstance(place, Path) else place
    return row_id(record.values, f"{name}:{record.line}")


@contextmanager
def _on_line(record: Record) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise RowError(record.line, str(error)) from None
