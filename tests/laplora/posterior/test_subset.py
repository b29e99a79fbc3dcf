"""Subsets of an adapter's matrices: which they are, and a posterior over them."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import dense_reference as dense
import pytest
import torch
from fast_path import key_of, replay, rows_of
from reference_problem import Problem
from tiny_models import tiny_model, tiny_task

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrasts
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import FITTERS, STRUCTURES, fit_posterior, granularities
from laplora.posterior.subset import select_blocks
from training.config import LaplaceConfig


def adapter(layers: int) -> list[Block]:
    """Return the blocks of an adapter on queries, values, a fused projection and the head."""
    modules = [f"model.layers.{i}.self_attn.{m}" for i in range(layers) for m in ("q_proj", "v_proj", "qkv_proj")]
    return [Block(f"{m}.lora_{side}", f"lora_{side}", 16, 4) for m in [*modules, "lm_head"] for side in "AB"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("subset", "count", "expected"),
    [
        ("all", 74, lambda name: True),
        ("values_b", 12, lambda name: ".v_proj.lora_B" in name),
        ("last_layer", 6, lambda name: "layers.11." in name),
        ("last_4_layers", 24, lambda name: any(f"layers.{i}." in name for i in (8, 9, 10, 11))),
        (r"regex:layers\.1\.", 6, lambda name: "layers.1." in name),
        ("regex:^lm_head", 2, lambda name: name.startswith("lm_head")),
    ],
)
def test_which_blocks(subset: str, count: int, expected) -> None:  # type: ignore[no-untyped-def]
    """In order; layer 10 and 11 come after 9, and the fused projection is no value projection."""
    blocks = adapter(12)
    found = select_blocks(blocks, subset)
    assert found == tuple(b for b in blocks if expected(b.name))
    assert len(found) == count


def test_a_shallow_model_has_fewer_layers() -> None:
    assert select_blocks(adapter(2), "last_4_layers") == tuple(adapter(2)[:-2])


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ("values_a", "no subset 'values_a'; there are all, values_b, last_layer, last_4_layers, and regex:"),
        ("regex:(", r"subset 'regex:\(': not a regular expression"),
        ("regex:mlp", "subset 'regex:mlp' holds none of the adapter's 14 blocks, such as model.layers.0.self_attn.q_p"),
    ],
)
def test_subsets_that_are_none(subset: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select_blocks(adapter(2), subset)


def test_no_layer_at_all() -> None:
    with pytest.raises(ConfigError, match=r"holds none of the adapter's 2 blocks, such as lm_head\.lora_A, lm_head"):
        select_blocks(adapter(2)[-2:], "last_layer")


@pytest.mark.parametrize("structure", ["ekfac", "joint_core", "exact"])
@pytest.mark.parametrize("subset", ["last_layer", "regex:lora_B$"])
def test_other_weights_have_no_variance(problem: Problem, structure: str, subset: str) -> None:
    """At a precision far above the curvature every structure has the prior's covariance of those blocks alone."""
    blocks = select_blocks(find_blocks(problem.model, problem.task.classes), subset)
    run_pass = replay(rows_of(problem.model, problem.task, batch_size=16, blocks=blocks))
    settings = StructureSettings(structure, rank=1000, oversampling=0, basis_dtype=torch.float64)
    posterior = fit_posterior(settings, blocks, run_pass)
    assert posterior.blocks == blocks
    test = replace(tiny_task(examples=5, seed=99), label_ids=problem.task.label_ids)
    found = contrast_jacobians(problem.model, test.batch(), test.label_ids, posterior.blocks)
    covered = {key_of(b) for b in blocks}
    jacobians = dense.jacobians(problem.model, test.batch(), test.label_ids)
    full = sum(j.flatten(2) @ j.flatten(2).mT for key, j in jacobians.items() if key in covered) / 1e9
    q = contrasts(problem.task.classes)
    expected = q.T @ full @ q
    variance = posterior.covariance_of(found, block_precisions(Prior("scalar", {"all": 1e9}), blocks))
    # The curvature, up to 1e3, is still 1e-6 of the precision.
    torch.testing.assert_close(variance, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_structures_are_those_of_the_configuration() -> None:
    assert get_args(LaplaceConfig.model_fields["structure"].annotation) == STRUCTURES == tuple(FITTERS)
    assert [s for s in STRUCTURES if granularities(s) == ("scalar", "group", "module")] == ["ekfac", "kfac_reduce"]


def test_an_unknown_structure_is_named() -> None:
    model, task = tiny_model("llama"), tiny_task(examples=2)
    blocks = find_blocks(model, task.classes)
    with pytest.raises(ConfigError, match="no posterior structure 'swag'; there are joint_core, ekfac"):
        fit_posterior(StructureSettings("swag"), blocks, replay(rows_of(model, task, batch_size=2)))
