"""Fine-tuning on the one device that the configuration names, or with its batches on the first of a device map's.

transformers' Trainer starts at ``cuda:0`` and replicates the model over every visible GPU with ``nn.DataParallel``,
which a PEFT model in 4 bit is not made for.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import TrainingArguments


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Hold while a CUDA device is the current one, which is where accelerate puts batches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass
class OneDeviceArguments(TrainingArguments):
    """The Trainer's settings for one device: ``cpu``, ``cuda`` (the first) or ``cuda:N``."""

    run_device: str = "cpu"

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
            return wanted if wanted.type == first.type else first
        index = wanted.index or 0
        torch.cuda.set_device(index)  # the Trainer has made the first one current
        self._n_gpu = 1
        return torch.device("cuda", index)
