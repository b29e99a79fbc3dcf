"""Condition: a new version of an artifact that learned from further labelled rows, without training; and undoing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import laplora
from laplora.artifact.folder import Artifact, read_artifact
from laplora.data.labelled import Task
from laplora.errors import ConfigError
from training.data.adapter_rows import adapter_rows
from training.workspace.terminal import Terminal, say


@dataclass(frozen=True)
class ConditionRequest:
    """The options of ``python -m training condition``.

    Attributes:
        artifact: its folder; out: of the new version, None for the artifact's place.
        labels: file of the new rows.
        undo: whether to put the artifact back as it was packaged, in place of all that.
    """

    artifact: Path
    labels: Path | None = None
    out: Path | None = None
    label_field: str = "label"
    groups: str | None = None
    force: bool = False
    undo: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError for options that do not go together."""
        if self.undo == (self.labels is not None):
            raise ConfigError("give --labels FILE to condition the artifact, or --undo to put it back as packaged")
        if self.undo and (self.out or self.force):
            raise ConfigError("--undo puts the artifact back in its place: it takes no other option")


def condition(request: ConditionRequest) -> Path:
    """Write the new version, or the packaged one again, and return its folder.

    Raises:
        ConditioningError: the labels make the answers worse.
        DataError: rows that cannot be used, by file and line.
        ConfigError, ArtifactError, ModelError: an artifact that cannot be conditioned, loaded or written.
    """
    if request.undo:
        laplora.restore_packaged(request.artifact)
        say(f"as packaged: {request.artifact}")
        return request.artifact
    artifact = read_artifact(request.artifact)
    laplora.condition(
        request.artifact,
        _rows(request.labels, artifact, request.label_field, request.groups),
        out=request.out,
        label_field=request.label_field,
        groups=request.groups,
        force=request.force,
        device=request.device,
        progress=Terminal(),
    )
    target = request.out or request.artifact
    recommended = read_artifact(target).manifest.recommended
    say(f"answers by {recommended.predictive}" + (", by force" if request.force else ""))
    if request.out is None:
        say(f"undo it: python -m training condition --artifact {target} --undo")
    return target


def _rows(path: Path | None, artifact: Artifact, label_field: str, groups: str | None) -> list[dict[str, Any]] | None:
    """Return a file's rows; None without a file."""
    if path is None:
        return None
    manifest = artifact.manifest
    task = Task(manifest.name, manifest.template.template(), manifest.labels)
    head = manifest.readout.kind == "classification_head"
    several = manifest.likelihood == "bernoulli"
    return adapter_rows(path, task, label_field, of_head=head, several=several, groups=groups)
