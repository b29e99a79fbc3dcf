"""The cost of a fit beyond its necessary passes through the model, and the cost of choosing a prior."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import load_subject, random_batch
from benchmarks.harness.timing import in_turns, ratio, spread
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.posterior.base import Posterior, Prior, ProjectedJacobians, block_precisions
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import fit_posterior, needs_sums
from laplora.predictive.batch_outputs import AdaptedModel
from laplora.prior.evidence import choose_by_evidence
from laplora.prior.search import choose_by_validation
from laplora.prompts.rows import Batch

State = TypeVar("State")
ROWS, TOKENS = 32, 32
#: Held-out rows, as many as the default configurations calibrate on.
HELD_OUT = 150
STRUCTURES = ("joint_core", "ekfac")


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the cost of curvature by structure and batch size, and of the two ways to choose a prior.

    A pass is one forward and one backward over the training rows (two classes); both structures take two.
    """
    adapted = load_subject("bfloat16")
    blocks = find_blocks(adapted.model, 2)
    for size in (8,) if quick else (1, 8, 32):
        batches = [random_batch(adapted, size, TOKENS) for _ in range(ROWS // size)]
        functions: dict[str, Callable[[], Any]] = {"one pass": partial(one_pass, adapted, blocks, batches)}
        functions |= {structure: partial(fit, adapted, blocks, batches, structure) for structure in STRUCTURES}
        times = in_turns(functions, 2 if quick else 5)
        for structure in STRUCTURES:
            yield conditions.record(
                f"fit: {structure}, batches of {size}",
                ratio(times, structure, "one pass"),
                "a forward and a backward of the rows",
                limit=2.4,
            )
    yield from choices(conditions, adapted, blocks)


def one_pass(adapted: AdaptedModel, blocks: tuple[Block, ...], batches: list[Batch]) -> None:
    """Compute every row's Jacobians, and keep none."""
    for batch in batches:
        contrast_jacobians(adapted.model, batch, adapted.readout, blocks, sums=False)


def fit(
    adapted: AdaptedModel, blocks: tuple[Block, ...], batches: list[Batch], structure: str, **options: Any
) -> Posterior:
    """Return the posterior of the batches' rows, at the default ranks unless ``options`` of the settings say others."""

    def run_pass(_title: str, empty: State, add: Callable[[State, ContrastJacobians, torch.Tensor], State]) -> State:
        state = empty
        for batch in batches:
            # Under no name: a batch's Jacobians go before the next one's come.
            state = add(
                state,
                contrast_jacobians(adapted.model, batch, adapted.readout, blocks, sums=needs_sums(structure)),
                batch.class_mask,
            )
        return state

    return fit_posterior(StructureSettings(structure=structure, **options), blocks, run_pass)


def with_posterior(adapted: AdaptedModel, batches: list[Batch], **options: Any) -> AdaptedModel:
    """Return the model with a joint core over the whole adapter."""
    blocks = find_blocks(adapted.model, adapted.readout.class_count)
    device = next(adapted.model.parameters()).device
    posterior = fit(adapted, blocks, batches, "joint_core", **options).to(device, torch.float32)
    precisions = block_precisions(Prior("scalar", {"all": 1.0}), blocks).to(device)
    return replace(adapted, posterior=posterior, precisions=precisions)


def choices(conditions: Conditions, adapted: AdaptedModel, blocks: tuple[Block, ...]) -> Iterator[Record]:
    """Yield the seconds of both choices of a prior for the default posterior, held-out rows projected before."""
    posterior = fit(adapted, blocks, [random_batch(adapted, 8, TOKENS)], "joint_core")
    batch = random_batch(adapted, 10, TOKENS)
    jacobians = contrast_jacobians(adapted.model, batch, adapted.readout, blocks, sums=False)
    few = posterior.project(jacobians)
    repeats = HELD_OUT // 10
    projected = ProjectedJacobians(*(torch.cat([part] * repeats) for part in (few.contrast_mean, few.kept, few.rest)))
    labels = torch.arange(HELD_OUT) % 2
    distances = torch.ones(len(blocks), dtype=torch.float64)
    possible = torch.ones(HELD_OUT, 2, dtype=torch.bool)
    times = in_turns(
        {
            "evidence": lambda: choose_by_evidence(posterior, distances, -10.0, "scalar"),
            "evidence by group": lambda: choose_by_evidence(posterior, distances, -10.0, "group"),
            "validation": lambda: choose_by_validation(posterior, projected, labels, possible),
        },
        5,
    )
    for name, limit in (("evidence", 0.05), ("evidence by group", 0.05), ("validation", 2.0)):
        yield conditions.record(f"fit: prior by {name}", spread(times[name]), "seconds", limit=limit)
