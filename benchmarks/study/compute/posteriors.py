"""Posteriors of the study: every structure fitted on one stored set of Jacobians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch

from benchmarks.study.store import StoredSplit, replay
from benchmarks.study.structures import fit_posterior
from benchmarks.study.structures.kfac import TokenSums
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.posterior.base import Posterior, ProjectedJacobians
from laplora.posterior.passes import StructureSettings
from laplora.posterior.sketch import sketch_matrix

State = TypeVar("State", bound=Any)


@dataclass(frozen=True)
class StoredPass:
    """Runs a pass over the stored training rows, in the manner that ``fit_posterior`` asks for."""

    split: StoredSplit
    blocks: tuple[Block, ...]
    only: tuple[Block, ...]
    structure: str
    batch_size: int = 32

    def __call__(
        self, title: str, empty: State, add: Callable[[State, ContrastJacobians, torch.Tensor], State]
    ) -> State:
        """Return the state after every stored row."""
        if isinstance(empty, TokenSums):
            return cast(State, expand_sums(self.split, self.blocks, self.only, empty))
        state = empty
        for jacobians, mask in replay(self.split, self.blocks, self.batch_size, only=self.only):
            if self.structure == "kfac_last":
                jacobians = with_last_tokens(self.split, self.blocks, self.only, jacobians, state.rows)
            state = add(state, jacobians, mask)
        return state


def with_last_tokens(
    split: StoredSplit, blocks: Sequence[Block], only: Sequence[Block], jacobians: ContrastJacobians, start: int
) -> ContrastJacobians:
    """Return the batch with the stored last token as its only one."""
    rows = slice(start, start + len(jacobians.logits))
    names = {b.name: i for i, b in enumerate(blocks)}
    parts: list[BlockJacobian] = []
    for block, part in zip(only, jacobians.blocks, strict=True):
        i = names[block.name]
        inputs, gradients = split.extra[f"last_input.{i}"][rows], split.extra[f"last_gradient.{i}"][rows]
        counts = torch.ones(len(inputs), dtype=torch.int64)
        parts.append(replace(part, inputs=inputs[:, None], gradients=gradients[:, :, None], token_counts=counts))
    return replace(jacobians, blocks=tuple(parts))


def expand_sums(split: StoredSplit, blocks: Sequence[Block], only: Sequence[Block], empty: TokenSums) -> TokenSums:
    """Return the KFAC-expand sums of all rows from the stored outer products of every token."""
    names = {b.name: i for i, b in enumerate(blocks)}
    wide, narrow, traces = [], [], []
    for k, block in enumerate(only):
        i = names[block.name]
        inputs, gradients = split.extra[f"expand_input.{i}"].double(), split.extra[f"expand_gradient.{i}"].double()
        large, small = (inputs, gradients) if block.group == "lora_A" else (gradients, inputs)
        wide.append(large @ sketch_matrix(block, empty.wide[k].shape[1], empty.seed))
        narrow.append(small)
        traces.append(large.trace())
    return replace(
        empty,
        rows=len(split.labels),
        terms=split.extra["expand_tokens"].double().expand(len(only)).clone(),
        wide=tuple(wide),
        narrow=tuple(narrow),
        wide_trace=torch.stack(traces),
    )


def fit_stored(
    settings: StructureSettings, split: StoredSplit, blocks: tuple[Block, ...], only: tuple[Block, ...]
) -> Posterior:
    """Return a posterior of some blocks from the stored training rows."""
    return fit_posterior(settings, only, StoredPass(split, blocks, only, settings.structure))


def project_stored(
    posterior: Posterior, split: StoredSplit, blocks: tuple[Block, ...], batch_size: int = 32
) -> ProjectedJacobians:
    """Return a stored split as far as a posterior looks at it, on the CPU."""
    placed = posterior.to("cpu", torch.float32)
    parts = [placed.project(j) for j, _ in replay(split, blocks, batch_size, only=posterior.blocks)]
    return ProjectedJacobians(
        *(torch.cat([getattr(p, name) for p in parts]) for name in ("contrast_mean", "kept", "rest"))
    )
