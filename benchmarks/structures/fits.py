"""Every structure fitted on one set of Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch

from benchmarks.structures.curvature import Compared, fit_posterior
from benchmarks.structures.curvature.diagonal import DiagonalPosterior
from benchmarks.structures.curvature.ella import EllaPosterior
from benchmarks.structures.curvature.kfac import TokenSums
from benchmarks.structures.curvature.whole import WholePosterior
from benchmarks.structures.rows import Gathered, SplitRows, replay
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.base import ProjectedJacobians
from laplora.posterior.file import posterior_tensors
from laplora.posterior.passes import StructureSettings
from laplora.posterior.sketch import sketch_matrix

State = TypeVar("State", bound=Any)


def fit_gathered(gathered: Gathered, settings: StructureSettings, only: tuple[Block, ...]) -> Compared:
    """Return a posterior of some blocks from the training rows."""
    return fit_posterior(settings, only, _GatheredPass(gathered, only, settings.structure))


def project_gathered(gathered: Gathered, posterior: Compared, split: SplitRows) -> ProjectedJacobians:
    """Return a split as far as a posterior looks at it."""
    placed = posterior.to("cpu", torch.float32)
    parts = [placed.project(j) for j, _ in replay(split, gathered.blocks, posterior.blocks)]
    return ProjectedJacobians(
        *(torch.cat([getattr(p, name) for p in parts]) for name in ("contrast_mean", "kept", "rest"))
    )


def posterior_bytes(posterior: Any) -> int:
    """Return the size of a posterior's file, bases in bfloat16."""
    if isinstance(posterior, WholePosterior):
        return 4 * posterior.factor.numel() + sum(2 * d.numel() for d in posterior.directions)
    if isinstance(posterior, DiagonalPosterior):
        return sum(4 * d.numel() for d in posterior.diagonal)
    if isinstance(posterior, EllaPosterior):
        return 4 * posterior.eigenvectors.numel() + sum(2 * d.numel() for d in posterior.directions)
    tensors, _ = posterior_tensors(posterior, "bfloat16")
    return sum(t.numel() * t.element_size() for t in tensors.values())


@dataclass(frozen=True)
class _GatheredPass:
    """Runs a pass over the training rows, in the manner that ``fit_posterior`` asks for."""

    gathered: Gathered
    only: tuple[Block, ...]
    structure: str

    def __call__(
        self, title: str, empty: State, add: Callable[[State, ContrastJacobians, torch.Tensor], State]
    ) -> State:
        if isinstance(empty, TokenSums):
            return cast(State, self._expand_sums(empty))
        state = empty
        for jacobians, mask in replay(self.gathered.train, self.gathered.blocks, self.only):
            last = self.structure == "kfac_last"
            state = add(state, self._with_last_tokens(jacobians, state.rows) if last else jacobians, mask)
        return state

    def _stored(self, kind: str) -> list[torch.Tensor]:
        """Return one kind of Kronecker input of each block."""
        return [self.gathered.train.extra[f"{kind}.{self.gathered.blocks.index(block)}"] for block in self.only]

    def _with_last_tokens(self, jacobians: ContrastJacobians, start: int) -> ContrastJacobians:
        """Return the batch with the stored last token as its only one."""
        rows = slice(start, start + len(jacobians.logits))
        counts = torch.ones(len(jacobians.logits), dtype=torch.int64)
        stored = zip(jacobians.blocks, self._stored("last_input"), self._stored("last_gradient"), strict=True)
        parts = [
            replace(part, inputs=inputs[rows, None], gradients=gradients[rows, :, None], token_counts=counts)
            for part, inputs, gradients in stored
        ]
        return replace(jacobians, blocks=tuple(parts))

    def _expand_sums(self, empty: TokenSums) -> TokenSums:
        """Return the KFAC-expand sums of all rows from the stored outer products of every token."""
        wide, narrow, traces = [], [], []
        stored = zip(self.only, self._stored("expand_input"), self._stored("expand_gradient"), strict=True)
        for k, (block, inputs, gradients) in enumerate(stored):
            large, small = (inputs, gradients) if block.group == "lora_A" else (gradients, inputs)
            wide.append(large.double() @ sketch_matrix(block, empty.wide[k].shape[1], empty.seed))
            narrow.append(small.double())
            traces.append(large.double().trace())
        split = self.gathered.train
        return replace(
            empty,
            rows=len(split.labels),
            terms=split.extra["expand_tokens"].double().expand(len(self.only)).clone(),
            wide=tuple(wide),
            narrow=tuple(narrow),
            wide_trace=torch.stack(traces),
        )
