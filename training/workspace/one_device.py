"""Fine-tuning on the device that the configuration names, however many the machine has.

transformers' Trainer takes every visible GPU by itself: it multiplies the batch by their number and replicates the
model with ``nn.DataParallel``, which a PEFT model in 4 bit is not made for; and it starts at ``cuda:0``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import TrainingArguments


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Hold while a CUDA device is the current one, which is where accelerate puts batches."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


@dataclass
class OneDeviceArguments(TrainingArguments):
    """The Trainer's settings for one device.

    Attributes:
        run_device: the one to train on, ``cpu``, ``cuda`` (the first) or ``cuda:N``.
    """

    run_device: str = field(default="cpu")

    def __post_init__(self) -> None:
        """Choose the CPU or not before the Trainer makes its settings."""
        self.use_cpu = torch.device(self.run_device).type == "cpu"
        super().__post_init__()  # type: ignore[no-untyped-call]

    @cached_property
    def _setup_devices(self) -> torch.device:
        """The device, after accelerate's state was set up; no second GPU is counted."""
        first: torch.device = super()._setup_devices
        wanted = torch.device(self.run_device)
        if wanted.type != "cuda":
            return first
        index = wanted.index or 0
        torch.cuda.set_device(index)  # the Trainer has made the first one current
        self._n_gpu = 1
        return torch.device("cuda", index)
