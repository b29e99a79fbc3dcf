"""Subsets of an adapter: which of its matrices they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
from fast_path import replay

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import STRUCTURES, fit_posterior
from laplora.posterior.subset import select_blocks
from laplora.settings import LaplaceSettings


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
        (12, "regex:^lm_head", 2, lambda name: name.startswith("lm_head")),
    ],
)
def test_which_blocks(layers: int, subset: str, count: int, expected: Callable[[str], bool]) -> None:
    """In order; layer 10 and 11 come after 9, and the fused projection is no value projection."""
    found = select_blocks(adapter(layers), subset)
    assert found == tuple(b for b in adapter(layers) if expected(b.name))
    assert len(found) == count


def test_subsets_that_are_none() -> None:
    for layers, subset, message in (
        (2, "values_a", "no subset 'values_a'; there are all, values_b, last_layer, last_4_layers, and regex:"),
        (2, "regex:(", r"subset 'regex:\(': not a regular expression"),
        (0, "last_layer", r"holds none of the adapter's 2 blocks, such as lm_head\.lora_A, lm_head"),
    ):
        with pytest.raises(ConfigError, match=message):
            select_blocks(adapter(layers), subset)


def test_structures_are_those_of_the_configuration() -> None:
    assert get_args(LaplaceSettings.model_fields["structure"].annotation) == STRUCTURES
    with pytest.raises(ConfigError, match="no posterior structure 'swag'; there are joint_core, ekfac"):
        fit_posterior(StructureSettings("swag"), (), replay([]))
