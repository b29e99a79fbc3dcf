"""Examples from the user's files, through a prompt template and a list of label words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from laplora.data.labelled import Task, examples_of, without_gaps
from laplora.data.records import read_records
from laplora.errors import ConfigError
from laplora.files.atomic import file_sha256
from laplora.prompts.templates import TEMPLATES, PromptTemplate
from training.data.examples import ROLES, Pool, Role, Source


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
        "for a list of choices; no field is called id, label or prompt. {{ and }} are literal braces. End it where the "
        "label word follows",
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
    groups: str | None = None,
) -> Source:
    """Return the rows of one file, or of one file per split.

    Args:
        columns, groups: as of ``examples_of``.

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
    pools, warnings = [], []
    for path, roles in files.items():
        records, lines = without_gaps(path, read_records(path), task, label_field, label_map, columns)
        pools.append(
            Pool(str(path), examples_of(path, records, task, label_field, label_map, columns, groups=groups), roles)
        )
        warnings += lines
    detail = ", ".join(f"{path.name} (sha256 {file_sha256(path)})" for path in files)
    return Source(task, tuple(pools), "file", detail, tuple(warnings))
