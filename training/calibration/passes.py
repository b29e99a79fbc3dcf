"""A pass over the training rows that a job can be stopped in: its state is saved as it grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import accumulate, count, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.jacobians.contrasts import contrast_jacobians
from laplora.linearised import class_log_probs
from laplora.posterior.passes import State
from laplora.posterior.structures import needs_sums
from training.workspace.files import write_tensors
from training.workspace.provenance import curvature_inputs
from training.workspace.run import Run
from training.workspace.runtime import batches
from training.workspace.terminal import progress

#: How often a state is saved, seconds.
SAVE_EVERY_S = 30.0


class ResumablePass:
    """Passes over a run's training rows by its model; ``laplora.posterior.passes.Pass``.

    Each pass keeps its state in a file named by its title. A finished one is read back and runs no model, and
    one whose file was made from something else starts again.

    Attributes:
        log_likelihood: of the training rows, summed, nats, once a pass has ended.
    """

    def __init__(
        self, run: Run, model: nn.Module, blocks: tuple[Block, ...], folder: Path, adapter: Path | None = None
    ) -> None:
        self._run, self._model, self._blocks, self._folder = run, model, blocks, folder
        self._rows = run.encode(run.splits.train)
        self._labels = torch.tensor([e.label for e in run.splits.train], device=run.device)
        self._mark = curvature_inputs(run, adapter)
        self._sums = needs_sums(run.config.laplace.structure)
        self.log_likelihood = 0.0

    def __call__(
        self, title: str, empty: State, add: Callable[[State, ContrastJacobians, torch.Tensor], State]
    ) -> State:
        """Return the state after every training row."""
        run, path = self._run, self._folder / f"{title}.safetensors"
        state, self.log_likelihood = self._read(path, empty)
        plan = batches(self._rows, run.config.laplace.batch_size)
        done = sum(rows <= state.rows for rows in accumulate(map(len, plan)))
        saved_at = time.monotonic()
        for number in progress(range(done, len(plan)), f"curvature: {title}"):
            batch = run.collate([self._rows[i] for i in plan[number]])
            jacobians = contrast_jacobians(self._model, batch, run.readout, self._blocks, sums=self._sums)
            state = add(state, jacobians, batch.class_mask)
            log_probs = class_log_probs(jacobians.logits, batch.class_mask)
            self.log_likelihood += float(log_probs.gather(1, self._labels[plan[number]][:, None]).sum())
            del jacobians  # not held beside the next batch's
            if time.monotonic() - saved_at > SAVE_EVERY_S or number + 1 == len(plan):
                tensors, numbers = state_parts(state)
                write_tensors(
                    path, tensors, numbers | {"log_likelihood": repr(self.log_likelihood), "mark": self._mark}
                )
                saved_at = time.monotonic()
        return state

    def _read(self, path: Path, empty: State) -> tuple[State, float]:
        if not path.is_file():
            return empty, 0.0
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata()
        if metadata["mark"] != self._mark:
            return empty, 0.0
        return state_from_parts(empty, load_file(path), metadata), float(metadata["log_likelihood"])


def state_parts(state: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return a state's tensors and numbers by field name; ``<field>.<i>`` for the tensors of a tuple.

    Fields of any other kind belong to the empty state and are not kept.
    """
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, str] = {}
    for name, value in _named(state):
        if isinstance(value, int):
            numbers[name] = str(value)
        elif isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, tuple) and all(isinstance(v, torch.Tensor) for v in value):
            tensors |= {f"{name}.{i}": v for i, v in enumerate(value)}
    return tensors, numbers


def state_from_parts(empty: State, tensors: dict[str, torch.Tensor], numbers: dict[str, str]) -> State:
    """Return the state whose ``state_parts`` were written, on top of the empty one."""
    kept: dict[str, Any] = {}
    for name, value in _named(empty):
        if isinstance(value, int):
            kept[name] = int(numbers[name])
        elif name in tensors:
            kept[name] = tensors[name]
        elif f"{name}.0" in tensors:
            places = takewhile(tensors.__contains__, (f"{name}.{i}" for i in count()))
            kept[name] = tuple(tensors[place] for place in places)
    return replace(empty, **kept)  # type: ignore[type-var]


def _named(state: Any) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(state, field.name)) for field in fields(state))
