"""Inputs and outputs of each block's linear, noted during one forward pass with a graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from laplora.errors import ModelError
from laplora.jacobians.blocks import Block
from laplora.models.lora import lora_of
from laplora.models.readout import base_of


class ActivationTape(ExitStack[None]):
    """Records input and output of each block's linear during one forward; a context manager.

    Args:
        recorded: blocks of which the read-out calls ``record``, as no module call shows them.

    Raises ModelError where a linear runs twice in it (shared layers, gradient checkpointing).
    """

    def __init__(self, model: Any, blocks: Sequence[Block], recorded: Collection[str] = ()) -> None:
        super().__init__()
        self.records: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._base = base_of(model)
        self._blocks = [block for block in blocks if block.name not in recorded]

    def __enter__(self) -> Self:
        head = self._base.get_output_embeddings()
        for block in self._blocks:
            path = block.name.rpartition(".")[0]
            layer = self._base.get_submodule(path)
            if block.group == "head":
                self.enter_context(layer.register_forward_hook(partial(self._note, block.name)))
                continue
            # The head's lora_B is read at the label rows only and is no module call: label_logits records it.
            if layer is not head or block.group == "lora_A":
                linear = lora_of(layer).sides[block.group]
                self.enter_context(linear.register_forward_hook(partial(self._note, block.name)))
        return self

    def record(self, name: str, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """Return ``outputs`` as a node of the graph, after noting ``(inputs, outputs)``."""
        if name in self.records:
            raise ModelError(f"{name} ran twice in one forward; shared or checkpointed layers are not covered")
        if not outputs.requires_grad:  # below the first adapter nothing needs a gradient, so the graph starts here
            outputs = outputs.detach().requires_grad_()
        self.records[name] = (inputs.detach(), outputs)
        return outputs

    def _note(self, name: str, _module: nn.Module, inputs: Any, outputs: torch.Tensor) -> torch.Tensor:
        return self.record(name, inputs[0], outputs)
