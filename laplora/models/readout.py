"""The class logits: the rows of the output embedding for the label tokens, at the last real token.

Operations between ``lm_head``'s output and the model's logits are read from its configuration: a factor ``f = scale *
z`` of Granite and Cohere, and a soft cap ``f = cap * tanh(scale * z / cap)`` of Gemma 2 (arXiv 2408.00118, section 2).
That it does just that is measured at load (``laplora.models.probe``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from laplora.models.lora import lora_of, runs_lora
from laplora.prompts.rows import Batch

#: Notes the input and output of a linear map that is not called as a module, under its name; returns the output.
_Record = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]
#: Settings that multiply the logits, that divide them, and that cap them.
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)
_CAPS = ("final_logit_softcapping",)
#: Rows of the output embedding whose logits are in memory at once.
_VOCABULARY_CHUNK = 8192


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
    transform = logit_transform(model)
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
    vocabulary = logit_transform(model).apply(head(given).float())
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


def log_partition(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return ``log sum_v exp f_v`` over the vocabulary, nats, (...) for final hidden states (..., hidden).

    It is float32, or float64 for a float64 model. Its gradient with respect to ``hidden`` is exact and is computed
    here, once for any number of backward passes. There is none with respect to the output embedding, which is frozen.
    """
    weight = output_head(model).weight
    wide, size = hidden.to(weight.device, torch.promote_types(torch.float32, hidden.dtype)), weight.shape[0]
    wanted = torch.is_grad_enabled() and wide.requires_grad
    total = torch.full(wide.shape[:-1], -torch.inf, dtype=wide.dtype, device=wide.device)
    slope = torch.zeros_like(wide)
    for start in range(0, size, _VOCABULARY_CHUNK):
        with torch.set_grad_enabled(wanted):
            states = wide.detach().requires_grad_(wanted)
            part = label_logits(model, states, range(start, min(start + _VOCABULARY_CHUNK, size))).logsumexp(-1)
        joined = torch.logaddexp(total, part.detach())
        if wanted:  # d/dh log(Z1 + Z2) is the mean of the two gradients, weighted by Z1 and Z2
            (gradient,) = torch.autograd.grad(part.sum(), states)
            slope = slope * (total - joined).exp()[..., None] + gradient * (part.detach() - joined).exp()[..., None]
        total = joined
    if wanted:
        total = total + (slope * (wide - wide.detach())).sum(-1)
    return total.to(hidden.device)


@dataclass(frozen=True)
class LogitTransform:
    """``f = cap * tanh(scale * z / cap)`` of ``lm_head``'s output z; without a cap ``f = scale * z``."""

    scale: float = 1.0
    cap: float | None = None

    def apply(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the logits of ``lm_head``'s output, of any shape, nats; the tensor itself where nothing is done."""
        if self.scale != 1.0:
            raw = raw * self.scale
        return raw if self.cap is None else self.cap * torch.tanh(raw / self.cap)

    def slope(self, logits: torch.Tensor) -> torch.Tensor:
        """Return ``df/dz`` at the logits f, of their shape: ``scale * (1 - (f / cap)^2)``."""
        flat = torch.full_like(logits, self.scale)
        return flat if self.cap is None else flat * (1 - (logits / self.cap).square())

    @property
    def nothing(self) -> bool:
        """Whether the logits are ``lm_head``'s output."""
        return self == LogitTransform()


def logit_transform(model: Any) -> LogitTransform:
    """Return what the configuration of a causal language model, or of one with PEFT's wrapping, says of its logits."""
    settings: Mapping[str, Any] = vars(model.config.get_text_config())

    def numbers(names: tuple[str, ...]) -> list[float]:
        return [float(settings[name]) for name in names if type(settings.get(name)) in (int, float)]

    scale = 1.0
    for factor in numbers(_FACTORS):
        scale *= factor
    for divisor in numbers(_DIVISORS):
        scale /= divisor or 1.0
    return LogitTransform(scale, next((cap for cap in numbers(_CAPS) if cap > 0), None))
