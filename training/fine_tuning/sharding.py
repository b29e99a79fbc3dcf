"""A model that FSDP shards over the processes of a training, where accelerate's configuration says so.

Each process then holds a part of every weight. What is saved is gathered first. There are no checkpoints: a training
that was stopped begins again.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from laplora.errors import ConfigError
from training.config import OptimizerConfig
from training.workspace.launcher import is_on, sharding_asked


def check_shardable(optimizer: OptimizerConfig) -> None:
    """Raise ConfigError for a training that cannot be sharded, or not as accelerate's configuration says."""
    if not sharding_asked():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("FSDP: only its second version shards an adapter's weights each by itself: fsdp_version: 2")
    if is_on("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ConfigError(
            "FSDP: each process reads the base itself: set fsdp_cpu_ram_efficient_loading: false in accelerate's file"
        )
    if optimizer.evaluate_every is not None:
        raise ConfigError("optimizer.evaluate_every goes back to a checkpoint, and of sharded weights none is kept")
    if optimizer.l2_to_initial:
        raise ConfigError(
            "optimizer.l2_to_initial holds whole weights to where they began, of which FSDP gives a process a part: "
            "train without FSDP, or leave it out"
        )


def whole_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """Return a sharded model's trained weights by parameter name, whole and on the CPU; None of any other model.

    Collective: every process gathers them.
    """
    if not isinstance(model, FSDPModule):
        return None
    return {
        name: (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().cpu()
        for name, weight in model.named_parameters()  # type: ignore[attr-defined]
        if weight.requires_grad
    }
