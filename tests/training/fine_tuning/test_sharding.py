"""What a sharded training cannot have is said before it begins, and 4-bit weights come as FSDP can shard them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from laplora.errors import ConfigError
from laplora.models.base import BaseSpec, load_base_model
from laplora.models.four_bit import packed_linears, plain_weight
from laplora.models.in_memory import non_finite
from training.config import OptimizerConfig
from training.fine_tuning.sharding import check_shardable, whole_weights

ENVIRONMENT = {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("optimizer", "environment", "message"),
    [
        ({}, {"FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({}, {"FSDP_CPU_RAM_EFFICIENT_LOADING": "True"}, "fsdp_cpu_ram_efficient_loading: false"),
        ({"evaluate_every": 4}, {}, "evaluate_every goes back to a checkpoint"),
        ({"l2_to_initial": 0.1}, {}, "l2_to_initial holds whole weights"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    optimizer: dict[str, Any], environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_shardable(OptimizerConfig(**optimizer))  # nothing is sharded
    for name, value in (ENVIRONMENT | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        check_shardable(OptimizerConfig(**optimizer))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FSDP_CPU_RAM_EFFICIENT_LOADING", raising=False)
    check_shardable(OptimizerConfig())


def test_a_plain_model_has_its_weights_whole() -> None:
    assert whole_weights(torch.nn.Linear(2, 2)) is None


def test_four_bit_weights_that_can_be_sharded_are_the_same(tiny_base_folder: Path) -> None:
    """Their codes are in numbers of bfloat16, most of which would be no numbers."""
    bytewise, shardable = (
        load_base_model(
            str(tiny_base_folder),
            BaseSpec("tiny", quantization="nf4"),
            device=torch.device("cpu"),
            dequantize=False,
            shardable=shardable,
        ).model
        for shardable in (False, True)
    )
    linears = packed_linears(shardable)
    assert linears
    for name, linear in packed_linears(bytewise).items():
        assert (linear.weight.dtype, linears[name].weight.dtype) == (torch.uint8, torch.bfloat16)
        assert torch.equal(plain_weight(linear, torch.float32), plain_weight(linears[name], torch.float32))
    assert non_finite(shardable) is None
    linear = next(iter(linears.values()))
    linear.weight.quant_state.state2.absmax[0] = torch.nan
    assert non_finite(shardable) is not None
