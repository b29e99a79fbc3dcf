"""The processes of a job that a launcher started: joined once, each with a device of its own."""

from __future__ import annotations

import datetime
import os
from functools import cache

import torch
from torch import distributed

from laplora.errors import ConfigError
from laplora.execution.workers import ALONE, Workers
from laplora.models.base import resolve_device
from laplora.models.spread import Spread
from training.config import BaseConfig
from training.workspace.launcher import launched

#: How long gradients wait for a process, as for the first one while it writes a checkpoint.
_TIMEOUT = datetime.timedelta(hours=1)


@cache
def joined() -> Workers:
    """Return the job's processes, this one among them; the first call waits for all of them."""
    if launched() == 1:
        return ALONE
    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=_TIMEOUT)
    return Workers.of_group()


def leave() -> None:
    """Leave the other processes, where there are some, as a job ends."""
    joined.cache_clear()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def own_spread(base: BaseConfig) -> Spread | None:
    """Return how a configuration spreads its base over the GPUs of this process; None: it is on one device.

    Raises:
        ConfigError: several processes, which share the rows and have a GPU each.
    """
    spread = base.spread
    if spread is not None and launched() > 1:
        raise ConfigError(
            f"base.device_map spreads the base over the GPUs of one process, and {launched()} processes were started, "
            "each with a GPU of its own: leave out the launcher, or device_map"
        )
    return spread


def own_device(device: str, workers: Workers) -> torch.device:
    """Return the device of this process: the machine's GPUs go to its processes in order.

    Raises:
        ConfigError: one GPU by its number for several processes.
        ModelError: no such device, or fewer GPUs than processes.
    """
    chosen = resolve_device(device)
    if workers.count == 1 or chosen.type != "cuda":
        return chosen
    if chosen.index is not None:
        raise ConfigError(
            f"base.device: {device} is one GPU, and {workers.count} processes take one each: use cuda or auto"
        )
    return resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
