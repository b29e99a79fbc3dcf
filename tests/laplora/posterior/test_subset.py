"""Subsets of an adapter's matrices: which they are, and a posterior over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import dense_reference as dense
import pytest
import torch
from fast_path import key_of, replay, rows_of
from joint_problem import held_out
from reference_problem import Problem

from laplora.errors import ConfigError
from laplora.fitting.settings import LaplaceSettings
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrasts
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import STRUCTURES, fit_posterior
from laplora.posterior.subset import select_blocks


def adapter(layers: int) -> list[Block]:
    """Return the blocks of an adapter on queries, values, a fused projection and the head."""
    modules = [f"model.layers.{i}.self_attn.{m}" for i in range(layers) for m in ("q_proj", "v_proj", "qkv_proj")]
    return [Block(f"{m}.lora_{side}", f"lora_{side}", 16, 4) for m in [*modules, "lm_head"] for side in "AB"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "subset", "count", "expected"),
    [
        (12, "all", 74, lambda name: True),
        (12, "values_b", 12, lambda name: ".v_proj.lora_B" in name),
        (12, "last_layer", 6, lambda name: "layers.11." in name),
        (12, "last_4_layers", 24, lambda name: any(f"layers.{i}." in name for i in (8, 9, 10, 11))),
        (2, "last_4_layers", 12, lambda name: "layers." in name),
        (12, r"regex:layers\.1\.", 6, lambda name: "layers.1." in name),
        (12, "regex:^lm_head", 2, lambda name: name.startswith("lm_head")),
    ],
)
def test_which_blocks(layers: int, subset: str, count: int, expected: Callable[[str], bool]) -> None:
    """In order; layer 10 and 11 come after 9, and the fused projection is no value projection."""
    found = select_blocks(adapter(layers), subset)
    assert found == tuple(b for b in adapter(layers) if expected(b.name))
    assert len(found) == count


@pytest.mark.parametrize(
    ("layers", "subset", "message"),
    [
        (2, "values_a", "no subset 'values_a'; there are all, values_b, last_layer, last_4_layers, and regex:"),
        (2, "regex:(", r"subset 'regex:\(': not a regular expression"),
        (2, "regex:mlp", "subset 'regex:mlp' holds none of the adapter's 14 blocks, such as model.layers.0"),
        (0, "last_layer", r"holds none of the adapter's 2 blocks, such as lm_head\.lora_A, lm_head"),
    ],
)
def test_subsets_that_are_none(layers: int, subset: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select_blocks(adapter(layers), subset)


@pytest.mark.parametrize(("structure", "subset"), [("ekfac", "last_layer"), ("joint_core", "regex:lora_B$")])
def test_other_weights_have_no_variance(problem: Problem, structure: str, subset: str) -> None:
    """At a precision far above the curvature every structure has the prior's covariance of those blocks alone."""
    blocks = select_blocks(find_blocks(problem.model, problem.task.classes), subset)
    run_pass = replay(rows_of(problem.model, problem.task, batch_size=16, blocks=blocks))
    settings = StructureSettings(structure, rank=1000, oversampling=0, basis_dtype=torch.float64)
    posterior = fit_posterior(settings, blocks, run_pass)
    assert posterior.blocks == blocks
    task = held_out(problem)
    covered = {key_of(b) for b in blocks}
    jacobians = dense.jacobians(problem.model, task.batch(), task.label_ids)
    full = sum(j.flatten(2) @ j.flatten(2).mT for key, j in jacobians.items() if key in covered) / 1e9
    q = contrasts(problem.task.classes)
    expected = q.T @ full @ q
    found = contrast_jacobians(problem.model, task.batch(), task.label_ids, posterior.blocks)
    variance = posterior.covariance_of(found, block_precisions(Prior("scalar", {"all": 1e9}), blocks))
    # The curvature, up to 1e3, is still 1e-6 of the precision.
    torch.testing.assert_close(variance, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_structures_are_those_of_the_configuration() -> None:
    assert get_args(LaplaceSettings.model_fields["structure"].annotation) == STRUCTURES
    with pytest.raises(ConfigError, match="no posterior structure 'swag'; there are joint_core, ekfac"):
        fit_posterior(StructureSettings("swag"), (), replay([]))
