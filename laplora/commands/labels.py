"""``laplora labels``: other labels for an artifact, or more labelled rows, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from laplora.commands import console, quick
from laplora.errors import ConfigError

_EXAMPLE = '{"rename": {"old": "new"}, "merge": {"new": ["a", "b"]}, "split": {"old": ["a", "b"]}, "add": ["c"]}'


def labels(
    artifact: Annotated[Path, typer.Argument(metavar="FOLDER", help="The artifact's folder.")],
    changes: Annotated[str | None, typer.Option(metavar="JSON", help=f"Such as {_EXAMPLE}.")] = None,
    rows: Annotated[Path | None, typer.Option(metavar="FILE", help="Rows with labels after the changes.")] = None,
    text: console.TextFieldOption = "text",
    label: Annotated[str, typer.Option(metavar="NAME", help="Field of a row that has its label.")] = "label",
    group: quick.GroupOption = None,
    force: Annotated[bool, typer.Option("--force", help="Write a version that answers worse too.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Put the artifact back as it was packaged.")] = False,
    device: console.DeviceOption = "auto",
) -> None:
    """Change an artifact's labels in seconds, or let it learn more rows; alone: list the labels and their changes.

    Heads are fitted anew on kept and given rows, 5 or more of each label that is added or part of a split. The JSON may
    also have target_risk or costs of the labels after.
    """
    from laplora.artifact.folder import read_artifact
    from laplora.artifact.label_changes import LabelChanges, history_of
    from laplora.artifact.packaged import restore_packaged
    from laplora.data.columns import columns_of
    from laplora.data.records import read_records
    from laplora.fitting.loaded import condition

    if undo and (changes or rows):
        raise ConfigError("--undo takes neither --changes nor --rows: the first version has its own labels and rows")
    if undo:
        restore_packaged(artifact)
    elif changes or rows:
        wanted = LabelChanges.read(changes) if changes else None
        fields = read_artifact(artifact).manifest.template.template().fields
        records = read_records(rows) if rows else []
        named = {"text": text if len(fields) == 1 else None, "label": label, "group": group}
        for option, name in named.items():
            if records and name is not None and name not in columns_of(records):
                raise ConfigError(f"{rows} has no column {name!r}: name one of {columns_of(records)} by --{option}")
        names = {text: fields[0]} if len(fields) == 1 else {}
        given = [{names.get(name, name): value for name, value in one.values.items()} for one in records]
        condition(artifact, given, changes=wanted, label_field=label, groups=group, force=force, device=device)
    manifest = read_artifact(artifact).manifest
    console.write(f"labels: {', '.join(manifest.labels)}")
    for one in history_of(manifest):
        console.write(json.dumps(one))
