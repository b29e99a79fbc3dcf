"""The class logits: the rows of the output embedding for the label tokens, at the last real token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from laplora.models.logit_transform import logit_transform
from laplora.models.lora import lora_of, runs_lora
from laplora.prompts.rows import Batch

#: Notes the input and output of a linear map that is not called as a module, under its name; returns the output.
_Record = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]


def base_of(model: Any) -> Any:
    """Return a causal language model without PEFT's wrapping."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def last_hidden(model: Any, batch: Batch) -> torch.Tensor:
    """Return the final hidden state at the last real token, (batch, hidden), on the batch's device."""
    base = base_of(model)
    decoder = getattr(base, base.base_model_prefix)
    hidden: torch.Tensor = decoder(**batch.inputs, use_cache=False).last_hidden_state[:, -1]
    return hidden.to(batch.input_ids.device)


def label_logits(
    model: Any, hidden: torch.Tensor, label_ids: Sequence[int], record: _Record | None = None
) -> torch.Tensor:
    """Return the class logits, (batch, classes), float32 (float64 for a float64 model), of ``last_hidden``.

    They are on its device, wherever the head is. ``record`` notes the label rows of an adapted ``lm_head``'s
    ``lora_B``.
    """
    head, home = output_head(model), hidden.device
    layer = getattr(head, "base_layer", head)
    hidden = hidden.to(layer.weight.device)
    rows = torch.tensor(list(label_ids), device=hidden.device)
    wide = torch.promote_types(torch.float32, hidden.dtype)
    bias = None if layer.bias is None else layer.bias[rows].to(wide)
    logits: torch.Tensor = F.linear(hidden.to(wide), layer.weight[rows].to(wide), bias)
    transform = logit_transform(base_of(model))
    if not runs_lora(head):
        return transform.apply(logits).to(home)
    lora = lora_of(head)
    low = lora.down(lora.dropout(hidden.to(lora.down.weight.dtype)))
    up = F.linear(low, lora.up.weight[rows])
    if record is not None:
        up = record(head_name(model) + ".lora_B", low, up)
    return transform.apply(logits + lora.scaling * up.to(wide)).to(home)


@torch.no_grad()
def label_mass(model: Any, hidden: torch.Tensor, label_ids: Sequence[int], class_mask: torch.Tensor) -> torch.Tensor:
    """Return the probability that the full-vocabulary softmax puts on the possible labels, (batch,) in [0, 1]."""
    head = output_head(model)
    given = hidden.to(getattr(head, "base_layer", head).weight.device)
    vocabulary = logit_transform(base_of(model)).apply(head(given).float())
    rows = torch.tensor(list(label_ids), device=vocabulary.device)
    labels = vocabulary[:, rows].masked_fill(~class_mask.to(rows.device), -torch.inf)
    mass: torch.Tensor = (labels.logsumexp(-1) - vocabulary.logsumexp(-1)).exp().clamp(0, 1)
    return mass.to(class_mask.device)


def output_head(model: Any) -> Any:
    """Return the output embedding, as PEFT wraps it where it is adapted."""
    return base_of(model).get_output_embeddings()


def head_name(model: Any) -> str:
    """Return the module path of the output embedding (``lm_head`` in most models)."""
    head = output_head(model)
    name: str = next(name for name, module in base_of(model).named_modules() if module is head)
    return name
