"""The class logits: the rows of the output embedding for the label tokens, at the last real token.

No other row is computed, except for ``label_mass``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from laplora.models.lora import ADAPTER
from laplora.prompts.rows import Batch


class Tape(Protocol):
    """What records the input and output of a linear map that is not called as a module."""

    def record(self, name: str, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """Return ``outputs``, after noting both tensors under ``name``."""
        ...


def last_hidden(model: Any, batch: Batch) -> torch.Tensor:
    """Return the final hidden state at the last real token, (batch, hidden)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = getattr(base, base.base_model_prefix)
    output = decoder(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    )
    hidden: torch.Tensor = output.last_hidden_state[:, -1]
    return hidden


def label_logits(model: Any, hidden: torch.Tensor, label_ids: Sequence[int], tape: Tape | None = None) -> torch.Tensor:
    """Return the class logits, (batch, classes), float32 (float64 for a float64 model).

    Args:
        hidden: (batch, hidden), from ``last_hidden``.
        label_ids: token id of each class.
        tape: records the label rows of an adapted ``lm_head``'s ``lora_B``, which is no module call.
    """
    head = output_head(model)
    rows = torch.tensor(list(label_ids), device=hidden.device)
    layer = getattr(head, "base_layer", head)
    wide = torch.promote_types(torch.float32, hidden.dtype)
    bias = None if layer.bias is None else layer.bias[rows].to(wide)
    logits: torch.Tensor = F.linear(hidden.to(wide), layer.weight[rows].to(wide), bias)
    if layer is head or head.disable_adapters:
        return logits
    down = head.lora_A[ADAPTER]
    low = down(head.lora_dropout[ADAPTER](hidden.to(down.weight.dtype)))
    up = F.linear(low, head.lora_B[ADAPTER].weight[rows])
    if tape is not None:
        up = tape.record(head_name(model) + ".lora_B", low, up)
    scaling: float = head.scaling[ADAPTER]
    return logits + scaling * up.to(wide)


@torch.no_grad()
def label_mass(model: Any, hidden: torch.Tensor, label_ids: Sequence[int], class_mask: torch.Tensor) -> torch.Tensor:
    """Return the probability that the full-vocabulary softmax puts on the possible labels, (batch,) in [0, 1].

    Args:
        hidden: (batch, hidden).
        class_mask: (batch, classes) bool.
    """
    vocabulary: torch.Tensor = output_head(model)(hidden).float()
    rows = torch.tensor(list(label_ids), device=hidden.device)
    labels = vocabulary[:, rows].masked_fill(~class_mask, -torch.inf)
    mass: torch.Tensor = (labels.logsumexp(-1) - vocabulary.logsumexp(-1)).exp().clamp(0, 1)
    return mass


def output_head(model: Any) -> Any:
    """Return the output embedding, as PEFT wraps it where it is adapted."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_output_embeddings()


def head_name(model: Any) -> str:
    """Return the module path of the output embedding (``lm_head`` in most models)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    name: str = next(name for name, module in base.named_modules() if module is head)
    return name
