"""Exact per-example Jacobians of the class logits with respect to LoRA weights.

The softmax sees only the C-1 contrasts ``Q^T f``. Examples of a batch do not interact, so one backward pass
of ``sum_n q_c^T f(x_n)`` gives, at each LoRA linear, the gradient ``delta`` (batch, tokens, out) of every
example at once; with the linear's input ``x`` (batch, tokens, in) an example's Jacobian is
``delta^T x`` summed over tokens. Plain autograd of activations: no functional transforms, so it runs
through 4-bit weights too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from laplora.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.errors import ModelError
from laplora.model import ADAPTER, head_name, label_logits, last_hidden, lora_layers
from laplora.predictive import contrasts
from laplora.prompts import Batch


def find_blocks(model: nn.Module, class_count: int) -> tuple[Block, ...]:
    """Return every LoRA weight matrix of a PEFT model, in module order, A before B."""
    head = head_name(model)
    blocks: list[Block] = []
    for name, layer in lora_layers(model).items():
        a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        wide_b = class_count if name == head else b.out_features
        blocks.append(Block(f"{name}.lora_A", "lora_A", a.in_features, a.out_features))
        blocks.append(Block(f"{name}.lora_B", "lora_B", wide_b, b.in_features))
    return tuple(blocks)


class ActivationTape:
    """Records input and output of each block's linear during one forward; a context manager.

    Raises:
        ModelError: a LoRA linear used twice in one forward (shared layers, gradient checkpointing): its
            two uses would need two records.
    """

    def __init__(self, model: Any, blocks: Sequence[Block]) -> None:
        self.records: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._base = model.get_base_model()
        self._blocks = blocks
        self._handles: list[Any] = []

    def __enter__(self) -> ActivationTape:
        head = self._base.get_output_embeddings()
        for block in self._blocks:
            path = block.name.rpartition(".")[0]
            layer = self._base.get_submodule(path)
            # The head's lora_B is read at the label rows only and is no module call: label_logits records it.
            if layer is not head or block.group == "lora_A":
                self._hook(block.name, getattr(layer, block.group)[ADAPTER])
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def record(self, name: str, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """Return ``outputs`` as a node of the graph, after noting ``(inputs, outputs)``."""
        if name in self.records:
            raise ModelError(f"{name} ran twice in one forward; shared or checkpointed layers are not covered")
        if not outputs.requires_grad:  # below the first adapter nothing needs a gradient, so the graph starts here
            outputs = outputs.detach().requires_grad_()
        self.records[name] = (inputs.detach(), outputs)
        return outputs

    def _hook(self, name: str, module: nn.Module) -> None:
        def forward_hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> torch.Tensor:
            return self.record(name, inputs[0], outputs)

        self._handles.append(module.register_forward_hook(forward_hook))


def contrast_jacobians(
    model: nn.Module, batch: Batch, label_ids: Sequence[int], blocks: Sequence[Block], *, tokens: bool = False
) -> ContrastJacobians:
    """Return logits and the exact Jacobians of their C-1 contrasts, for every block.

    One forward and C-1 activation-only backward passes, whatever the number of examples.

    Args:
        batch: on the model's device.
        blocks: those of ``find_blocks`` to compute.
        tokens: whether to keep every token's input and gradient as well.
    """
    with torch.enable_grad(), ActivationTape(model, blocks) as tape:
        hidden = last_hidden(model, batch)
        logits = label_logits(model, hidden, label_ids, tape)
        transform = contrasts(len(label_ids), logits.dtype).to(logits.device)
        records = [tape.records[b.name] for b in blocks]
        outputs = [r[1] for r in records]
        summed = (logits @ transform).sum(0)
        gradients = [
            torch.autograd.grad(summed[c], outputs, retain_graph=c + 1 < summed.numel()) for c in range(summed.numel())
        ]
    with torch.no_grad():
        result = tuple(
            _block_jacobian(block, record, [g[i] for g in gradients], batch.attention_mask, tokens=tokens)
            for i, (block, record) in enumerate(zip(blocks, records, strict=True))
        )
    return ContrastJacobians(logits.detach(), hidden.detach(), result)


def _block_jacobian(
    block: Block,
    record: tuple[torch.Tensor, torch.Tensor],
    gradients: Sequence[torch.Tensor],
    attention_mask: torch.Tensor,
    *,
    tokens: bool,
) -> BlockJacobian:
    inputs = record[0]
    if inputs.dim() == 2:  # the head runs at one token
        inputs, mask = inputs[:, None], torch.ones_like(attention_mask[:, :1])
    else:
        mask = attention_mask
    real = mask[..., None].to(inputs.dtype)
    # Pad positions have no gradient but do have activations: both sides are masked.
    inputs = inputs * real
    deltas = [g.reshape(*mask.shape, -1) * real for g in gradients]
    order = "bti,bto->bio" if block.group == "lora_A" else "bti,bto->boi"
    return BlockJacobian(
        jacobian=torch.stack([torch.einsum(order, inputs, d) for d in deltas], 1),
        mean_input=inputs.sum(1) / real.sum(1),
        summed_gradient=torch.stack([d.sum(1) for d in deltas], 1),
        inputs=inputs if tokens else None,
        gradients=torch.stack(deltas, 1) if tokens else None,
        token_counts=mask.sum(1) if tokens else None,
    )
