"""Folders where a run keeps what a fit has computed, so that one that was stopped continues."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from laplora.execution.workers import Workers
from laplora.features.store import FROZEN_PASSES, Kept, Store
from laplora.files.atomic import write_tensors
from training.workspace.provenance import base_inputs
from training.workspace.run import Run

#: Counts what kept tensors are called and mean: files of another number do not count.
LAYOUT = 2


class FolderStore:
    """Keeps each name in a safetensors file of one folder.

    Args:
        mark: digest of everything that all of it was made from; files of another mark do not count.
        passes: keeps those that no adapter changes, in place of this one.
    """

    def __init__(self, folder: Path, mark: str, passes: FolderStore | None = None) -> None:
        self._folder, self._mark, self._passes = folder, mark, passes

    def read(self, name: str, made_from: str = "") -> Kept | None:
        """Return what the file holds, if it is of this mark."""
        if self._passes and name == FROZEN_PASSES:
            return self._passes.read(name, made_from)
        path = self._folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as handle:
            notes = dict(handle.metadata() or {})
        if notes.pop("mark", None) != self._of(made_from):
            return None
        return load_file(path), notes

    def write(
        self, name: str, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str], made_from: str = ""
    ) -> None:
        if self._passes and name == FROZEN_PASSES:
            return self._passes.write(name, tensors, notes, made_from)
        write_tensors(self._folder / f"{name}.safetensors", tensors, {**notes, "mark": self._of(made_from)})

    def _of(self, made_from: str) -> str:
        return f"{LAYOUT}/{self._mark}/{made_from}"


def frozen_store(run: Run) -> FolderStore:
    """Return where the passes of a run's base without adapter are kept."""
    return FolderStore(run.config.run_dir / "frozen", base_inputs(run))


class SharedStore:
    """The store of several processes: the first one reads and writes, and tells the others what it read."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store, self._workers = store, workers

    def read(self, name: str, made_from: str = "") -> Kept | None:
        """Return what the first process's store holds; collective."""
        return self._workers.broadcast(lambda: self._store.read(name, made_from))

    def write(
        self, name: str, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str], made_from: str = ""
    ) -> None:
        if self._workers.first:
            self._store.write(name, tensors, notes, made_from)
