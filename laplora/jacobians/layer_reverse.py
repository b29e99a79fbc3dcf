"""One decoder layer's reverse pass, over its form (``laplora.jacobians.decoder_forms``), for all contrasts together.

Residual gradients are float32 at least, products in the model's number format.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from laplora.jacobians.attention import attention_gradients, heads, rotate
from laplora.jacobians.decoder_forms import LayerForm, Norm
from laplora.models.held_weights import plain_weight
from laplora.models.lora import lora_of, runs_lora


@dataclass(frozen=True)
class Adapted:
    """The factors of one adapted linear's Jacobians; gradients are zero at tokens before the last ones.

    Attributes:
        inputs: (batch, tokens, in), of the linear; None where ``lora_A``'s Jacobian is not wanted.
        low: (batch, tokens, rank), what ``lora_A`` made of it; None where ``lora_B``'s is not wanted.
        to_a: (contrasts, batch, last tokens, rank), gradients at the output of ``lora_A``.
        to_b: (contrasts, batch, last tokens, out), at that of ``lora_B``.
    """

    inputs: torch.Tensor | None
    low: torch.Tensor | None
    to_a: torch.Tensor
    to_b: torch.Tensor


@dataclass
class Kept:
    """One layer's activations.

    Attributes:
        dtype: the model's number format.
        mask: what tokens may attend to, as ``attention_gradients`` takes it; rotary: cosines and sines.
        normed: what each norm saw, by place.
        outputs: of linears, by name; inputs, low: what wanted linears saw, and what ``lora_A`` made of it.
    """

    dtype: torch.dtype
    mask: torch.Tensor | None
    rotary: tuple[torch.Tensor, torch.Tensor]
    normed: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    low: dict[str, torch.Tensor] = field(default_factory=dict)


class LayerReverse:
    """One layer's reverse pass."""

    def __init__(self, form: LayerForm, kept: Kept, path: str, wanted: Collection[str]) -> None:
        self.form, self.kept, self.path, self.wanted = form, kept, path, wanted
        self.adapted: list[tuple[str, Adapted]] = []

    def run(self, upper: torch.Tensor, *, stop: bool) -> torch.Tensor:
        """Return the gradients with respect to the layer's input; with ``stop`` what nobody reads.

        Args:
            upper: (contrasts, batch, last tokens, hidden), with respect to the layer's output.
        """
        form = self.form
        upper = self._mlp(upper)
        if stop and not self._wants(*form.attention, form.output):
            return upper
        context = self._linear(form.output, self._branch("after_attention", upper))
        if stop and not self._wants(*form.attention):
            return upper
        gradients = self._attention(context)
        if len(form.attention) == 1:
            gradients = [_joined(gradients)]
        if stop:
            for name, gradient in zip(form.attention, gradients, strict=True):
                self._adapter(name, gradient)
            return upper
        first, *others = zip(form.attention, gradients, strict=True)
        below: torch.Tensor | None = None
        for name, gradient in others:
            below = self._linear(name, gradient, below)
        name, gradient = first
        if below is None or gradient.shape[2] == below.shape[2]:
            below = self._linear(name, gradient, below)
        else:  # queries of the last tokens alone
            below[:, :, -gradient.shape[2] :] += self._linear(name, gradient)
        return self._residual("before_attention", below, upper)

    def _mlp(self, upper: torch.Tensor) -> torch.Tensor:
        """Return gradients with respect to the middle of the layer."""
        form, kept = self.form, self.kept
        last = upper.shape[2]
        inner = self._linear(form.down, self._branch("after_mlp", upper))
        outputs = [kept.outputs[name][:, -last:] for name in form.gate_up]
        gate, up = outputs if len(outputs) == 2 else outputs[0].chunk(2, -1)
        to_gate = form.activation.gradient(inner * up, gate.expand(inner.shape))
        to_up = inner.mul_(form.activation.value(gate))
        if len(form.gate_up) == 1:
            below = self._linear(form.gate_up[0], torch.cat([to_gate, to_up], -1))
        else:
            below = self._linear(form.gate_up[1], to_up)
            below = self._linear(form.gate_up[0], to_gate, below)
        return self._residual("before_mlp", below, upper)

    def _branch(self, place: str, upper: torch.Tensor) -> torch.Tensor:
        """Return gradients at the end of a branch, before its last norm, of those at the sum."""
        norm = self.form.norms.get(place)
        if self.form.residual != 1:
            upper = upper * self.form.residual
        if norm is not None:
            upper = norm_gradient(norm, self.kept.normed[place][:, -upper.shape[2] :], upper)
        return upper.to(self.kept.dtype)

    def _residual(self, place: str, below: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Return gradients where a branch begins: of those after its first norm, and what the sum adds."""
        norm = self.form.norms.get(place)
        if norm is not None:
            return norm_gradient(norm, self.kept.normed[place][:, -below.shape[2] :], below, upper)
        result = below.to(upper.dtype)
        result[:, :, -upper.shape[2] :] += upper
        return result

    def _attention(self, context: torch.Tensor) -> list[torch.Tensor]:
        """Return gradients at queries (last tokens), keys and values, (contrasts, batch, tokens, out)."""
        form, kept = self.form, self.kept
        last = context.shape[2]
        outputs = [kept.outputs[name] for name in form.attention]
        q, k, v = outputs if len(outputs) == 3 else torch.split(outputs[0], list(form.widths), -1)
        q = q[:, -last:]
        mask = None if kept.mask is None else kept.mask[:, :, -last:]
        turned_q, turned_k = (self._turned(self._head_normed(i, x)) for i, x in enumerate((q, k)))
        upper = heads(context, form.head_size)
        value = heads(v, form.head_size)
        dq, dk, dv = attention_gradients(turned_q, turned_k, value, mask, form.scale, upper)
        to_q, to_k, to_v = (t.transpose(2, 3).flatten(3) for t in (self._turned(dq, -1), self._turned(dk, -1), dv))
        return [self._head_norm_gradient(0, q, to_q), self._head_norm_gradient(1, k, to_k), to_v]

    def _turned(self, x: torch.Tensor, sign: int = 1) -> torch.Tensor:
        """Return queries or keys of the last tokens, (..., heads, tokens, size), turned; with -1 the transposed map."""
        if not self.form.rotary:
            return x
        cos, sin = (t[:, None, -x.shape[-2] :] for t in self.kept.rotary)
        return rotate(x, cos, sin if sign == 1 else -sin)

    def _head_normed(self, which: int, x: torch.Tensor) -> torch.Tensor:
        """Return queries (0) or keys (1) of (batch, tokens, out) by heads, after their norm."""
        if self.form.head_norms is None:
            return heads(x, self.form.head_size)
        norm = self.form.head_norms[which].module
        return heads(norm(_by(norm, x)).reshape(x.shape), self.form.head_size)

    def _head_norm_gradient(self, which: int, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return gradients before the norm of queries or keys, (contrasts, batch, tokens, out)."""
        if self.form.head_norms is None:
            return gradient
        norm = self.form.head_norms[which]
        before = norm_gradient(norm, _by(norm.module, x), _by(norm.module, gradient))
        return before.reshape(gradient.shape).to(gradient.dtype)

    def _wants(self, *names: str) -> bool:
        return any(f"{self.path}.{name}.{side}" in self.wanted for name in names for side in ("lora_A", "lora_B"))

    def _linear(self, name: str, gradient: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """Return gradients at a linear's input of those at its output, added to ``onto``."""
        linear = self.form.linears[name]
        weight = plain_weight(getattr(linear, "base_layer", linear), gradient.dtype)
        result = _product(gradient, weight, onto)
        to_a = self._adapter(name, gradient)
        return result if to_a is None else _product(to_a.to(result.dtype), lora_of(linear).down.weight, result)

    def _adapter(self, name: str, gradient: torch.Tensor) -> torch.Tensor | None:
        """Note an adapter's Jacobian parts; return the gradients at ``lora_A``'s output, None without an adapter."""
        linear = self.form.linears[name]
        if not runs_lora(linear):
            return None
        lora = lora_of(linear)
        up = lora.up.weight
        to_b = gradient.to(up.dtype) * lora.scaling
        to_a: torch.Tensor = to_b @ up
        if self._wants(name):
            parts = Adapted(self.kept.inputs.get(name), self.kept.low.get(name), to_a, to_b)
            self.adapted.append((f"{self.path}.{name}", parts))
        return to_a


def _joined(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return gradients of queries, keys and values at one linear's output; queries of earlier tokens have none."""
    query, *others = gradients
    width = sum(t.shape[-1] for t in gradients)
    result = query.new_zeros(*others[0].shape[:-1], width)
    result[:, :, -query.shape[2] :, : query.shape[-1]] = query
    torch.cat(others, -1, out=result[..., query.shape[-1] :])
    return result


def _by(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """Return (..., out) in pieces that a norm normalises: heads, or all of it."""
    return x.view(*x.shape[:-1], -1, norm.weight.shape[-1])


def _product(rows: torch.Tensor, weight: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
    """Return (..., out) times (out, in), added to (..., in)."""
    flat, weight = rows.reshape(-1, rows.shape[-1]), weight.to(rows.dtype)
    result = flat @ weight if onto is None else torch.addmm(onto.reshape(len(flat), -1), flat, weight)
    return result.view(*rows.shape[:-1], -1)


def norm_gradient(
    norm: Norm, inputs: torch.Tensor, gradient: torch.Tensor, onto: torch.Tensor | None = None
) -> torch.Tensor:
    """Return gradients at the input of a root mean square norm, in at least float32.

    With ``r = 1 / rms(x)`` and ``g = (offset + w) * gradient``: ``r g - r^3 mean(g x) x``.

    Args:
        inputs: (batch, tokens, ..., size); gradient: (contrasts, batch, tokens, ..., size), at its output.
        onto: what is added at the last tokens, (contrasts, batch, last tokens, ..., size).
    """
    wide = torch.promote_types(torch.float32, inputs.dtype)
    x = inputs.to(wide)
    size = x.shape[-1]
    inverse = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / size + norm.epsilon).rsqrt()
    weight = norm.module.weight.to(wide)
    result: torch.Tensor = gradient * (weight + norm.offset if norm.offset else weight)
    along = (result * x).sum(-1, keepdim=True).mul_(inverse**3 / -size)
    result.mul_(inverse).addcmul_(x.expand(result.shape), along)
    if onto is not None:
        result[:, :, -onto.shape[2] :] += onto
    return result
