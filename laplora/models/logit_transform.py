"""What a model does to ``lm_head``'s output before it calls it logits: a factor, a soft cap, or nothing.

``f = cap * tanh(scale * z / cap)`` of Gemma 2 (arXiv 2408.00118, section 2), ``f = scale * z`` of Granite and Cohere.
Both are read from the configuration. That the model does just that is measured at load (``laplora.models.probe``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

#: Settings that multiply the logits, that divide them, and that cap them.
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)
_CAPS = ("final_logit_softcapping",)


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
