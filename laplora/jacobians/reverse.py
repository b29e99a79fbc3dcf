"""The reverse pass of a Llama-like decoder, written out: gradients of activations only, all contrasts together.

The forward pass runs without a graph, and hooks keep what the reverse pass needs. Every weight is read, and every 4-bit
weight expanded, once for all contrasts. The last layer is computed at the last token alone, which the logits read.

A layer is ``m = x + O attention(Q n(x), K n(x), V n(x))``, ``y = m + D (silu(G n'(m)) * U n'(m))`` with root mean
square norms ``n`` (Zhang and Sennrich, arXiv 1910.07467), rotary embeddings (Su et al., arXiv 2104.09864) and query
heads that may share keys and values. Residual gradients are float32 at least, products in the model's number format.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from laplora.errors import ModelError
from laplora.jacobians.attention import attention_gradients, heads, rotate
from laplora.models.four_bit import plain_weight
from laplora.models.lora import ADAPTER

#: Decoder layers of exactly this form, by the names of their classes in transformers.
_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj")
_OUTPUT = "self_attn.o_proj"
_LINEARS = (*_ATTENTION, _OUTPUT, *_MLP, "mlp.down_proj")


@dataclass(frozen=True, eq=False)
class DecoderForm:
    """The decoder of a model that has the covered form, its modules looked up once.

    Attributes:
        decoder: the module; prefix: where its layers are, by path in the model.
        layers: of each layer the module, and its linears by name.
    """

    decoder: Any
    prefix: str
    layers: tuple[tuple[Any, dict[str, Any]], ...]


def decoder_form(base: Any) -> DecoderForm | None:
    """Return the form of a causal language model without PEFT's wrapping; None where it is not the covered one.

    Names of classes and modules alone decide. Whether the pass is right is measured (``laplora.jacobians.contrasts``).
    """
    decoder = getattr(base, base.base_model_prefix, None)
    layers = getattr(decoder, "layers", None)
    if not (
        isinstance(layers, nn.ModuleList)
        and base.config.get_text_config()._attn_implementation == "sdpa"
        and hasattr(getattr(decoder, "norm", None), "variance_epsilon")
        and all(_is_covered(layer) for layer in layers)
    ):
        return None
    linears = tuple((layer, {name: layer.get_submodule(name) for name in _LINEARS}) for layer in layers)
    return DecoderForm(decoder, f"{base.base_model_prefix}.layers", linears)


def _is_covered(layer: Any) -> bool:
    return (
        type(layer).__name__ in _LAYERS
        and type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
        and all(hasattr(norm, "variance_epsilon") for norm in (layer.input_layernorm, layer.post_attention_layernorm))
        and all(_is_linear(layer.get_submodule(name)) for name in _LINEARS)
    )


def _is_linear(linear: Any) -> bool:
    plain = getattr(linear, "base_layer", linear)
    return isinstance(plain, nn.Linear) and (plain.weight.is_floating_point() or hasattr(plain.weight, "quant_state"))


@dataclass(frozen=True)
class Adapted:
    """What one adapted linear's Jacobians are made of; gradients are zero at tokens before the last ones.

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
class _Kept:
    """One layer's activations; by name outputs of linears, and what wanted ones saw and ``lora_A`` made of it."""

    x: torch.Tensor
    mask: torch.Tensor | None
    rotary: tuple[torch.Tensor, torch.Tensor]
    middle: torch.Tensor | None = None
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    low: dict[str, torch.Tensor] = field(default_factory=dict)


class DecoderTape(ExitStack[None]):
    """Keeps what the reverse pass needs of one forward pass; a context manager.

    Args:
        form: of the model's decoder.
        wanted: names of the blocks whose Jacobians are wanted; those outside the layers are ignored.

    Raises:
        ModelError: a layer that ran twice in one forward pass, or with another attention than at load.
    """

    def __init__(self, form: DecoderForm, wanted: Collection[str]) -> None:
        super().__init__()
        self._form = form
        self._wanted = frozenset(wanted)
        linears = {block.rpartition(".")[0] for block in wanted}
        self._kept: list[_Kept] = []
        self._last: torch.Tensor | None = None
        count = len(form.layers)
        with_wanted = (i for i in range(count) if any(f"{form.prefix}.{i}.{name}" in linears for name in _LINEARS))
        #: The lowest layer with a wanted Jacobian; nothing below it is kept or differentiated.
        self._lowest = next(with_wanted, count)

    def __enter__(self) -> Self:
        self.enter_context(self._form.decoder.norm.register_forward_pre_hook(self._keep_last))
        for number in range(self._lowest, len(self._form.layers)):
            self._watch(number, *self._form.layers[number])
        return self

    def _keep_last(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._last = inputs[0][:, -1:]

    def _watch(self, number: int, layer: Any, linears: dict[str, Any]) -> None:
        def enter(_module: nn.Module, inputs: tuple[torch.Tensor, ...], options: dict[str, Any]) -> None:
            if len(self._kept) != number - self._lowest:
                raise ModelError(f"layer {number} ran out of turn; shared or checkpointed layers are not covered")
            mask = options["attention_mask"]
            if mask is not None and mask.dtype != torch.bool:
                raise ModelError("the model's attention is another one than at load: load it again")
            self._kept.append(_Kept(inputs[0], mask, options["position_embeddings"]))

        def middle(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._kept[-1].middle = inputs[0]

        def around(name: str, _m: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if name in (*_ATTENTION, *_MLP):
                self._kept[-1].outputs[name] = output
            if f"{self._form.prefix}.{number}.{name}.lora_A" in self._wanted:
                # The base's input: each adapter would have a copy of it in a wider format.
                self._kept[-1].inputs[name] = inputs[0]

        def low(name: str, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._kept[-1].low[name] = output

        self.enter_context(layer.register_forward_pre_hook(enter, with_kwargs=True))
        self.enter_context(layer.post_attention_layernorm.register_forward_pre_hook(middle))
        for name, linear in linears.items():
            self.enter_context(linear.register_forward_hook(partial(around, name)))
            if f"{self._form.prefix}.{number}.{name}.lora_B" in self._wanted:
                self.enter_context(linear.lora_A[ADAPTER].register_forward_hook(partial(low, name)))

    def reverse(self, gradient: torch.Tensor) -> Iterator[tuple[str, Adapted]]:
        """Yield every wanted linear's path with its Jacobians' parts, from the last layer down, and free activations.

        Args:
            gradient: (contrasts, batch, hidden), with respect to the final hidden state at the last token.
        """
        assert self._last is not None
        upper = norm_gradient(self._form.decoder.norm, self._last, gradient[:, :, None])
        self._last = None  # a view of every token's state
        for number in range(len(self._form.layers) - 1, self._lowest - 1, -1):
            path = f"{self._form.prefix}.{number}"
            step = _LayerReverse(*self._form.layers[number], self._kept.pop(), path, self._wanted)
            upper = step.run(upper, stop=number == self._lowest)
            yield from step.adapted


class _LayerReverse:
    """One layer's reverse pass."""

    def __init__(self, layer: Any, linears: dict[str, Any], kept: _Kept, path: str, wanted: Collection[str]) -> None:
        self.layer, self.linears, self.kept, self.path, self.wanted = layer, linears, kept, path, wanted
        self.adapted: list[tuple[str, Adapted]] = []

    def run(self, upper: torch.Tensor, *, stop: bool) -> torch.Tensor:
        """Return the gradients with respect to the layer's input; with ``stop`` what nobody reads.

        Args:
            upper: (contrasts, batch, last tokens, hidden), with respect to the layer's output.
        """
        upper = self._mlp(upper)
        if stop and not self._wants(*_ATTENTION, _OUTPUT):
            return upper
        context = self._linear(_OUTPUT, upper.to(self.kept.x.dtype))
        if stop and not self._wants(*_ATTENTION):
            return upper
        to_q, to_k, to_v = self._attention(context)
        if stop:
            for name, gradient in zip(_ATTENTION, (to_q, to_k, to_v), strict=True):
                self._adapter(name, gradient)
            return upper
        below = self._linear("self_attn.v_proj", to_v, self._linear("self_attn.k_proj", to_k))
        last = upper.shape[2]
        if last == below.shape[2]:
            below = self._linear("self_attn.q_proj", to_q, below)
        else:
            below[:, :, -last:] += self._linear("self_attn.q_proj", to_q)
        return norm_gradient(self.layer.input_layernorm, self.kept.x, below, upper)

    def _mlp(self, upper: torch.Tensor) -> torch.Tensor:
        """Return gradients with respect to the middle of the layer."""
        layer, kept = self.layer, self.kept
        assert kept.middle is not None
        last = upper.shape[2]
        gate, up = (kept.outputs[name][:, -last:] for name in _MLP)
        inner = self._linear("mlp.down_proj", upper.to(kept.x.dtype))
        to_gate = torch.ops.aten.silu_backward(inner * up, gate.expand(inner.shape))
        below = self._linear("mlp.up_proj", inner.mul_(nn.functional.silu(gate)))
        below = self._linear("mlp.gate_proj", to_gate, below)
        return norm_gradient(layer.post_attention_layernorm, kept.middle[:, -last:], below, upper)

    def _attention(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return gradients at the outputs of the three projections, (contrasts, batch, tokens, out)."""
        attention, kept = self.layer.self_attn, self.kept
        last = context.shape[2]
        cos, sin = (t[:, None] for t in kept.rotary)
        q, k, v = (heads(kept.outputs[name], attention.head_dim) for name in _ATTENTION)
        q, cos_q, sin_q = q[:, :, -last:], cos[:, :, -last:], sin[:, :, -last:]
        mask = None if kept.mask is None else kept.mask[:, :, -last:]
        upper = heads(context, attention.head_dim)
        dq, dk, dv = attention_gradients(
            rotate(q, cos_q, sin_q), rotate(k, cos, sin), v, mask, attention.scaling, upper
        )
        dq, dk = rotate(dq, cos_q, -sin_q), rotate(dk, cos, -sin)
        return tuple(t.transpose(2, 3).flatten(3) for t in (dq, dk, dv))  # type: ignore[return-value]

    def _wants(self, *names: str) -> bool:
        return any(f"{self.path}.{name}.{side}" in self.wanted for name in names for side in ("lora_A", "lora_B"))

    def _linear(self, name: str, gradient: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """Return gradients at a linear's input of those at its output, added to ``onto``."""
        linear = self.linears[name]
        weight = plain_weight(getattr(linear, "base_layer", linear), gradient.dtype)
        result = _product(gradient, weight, onto)
        to_a = self._adapter(name, gradient)
        return result if to_a is None else _product(to_a.to(result.dtype), linear.lora_A[ADAPTER].weight, result)

    def _adapter(self, name: str, gradient: torch.Tensor) -> torch.Tensor | None:
        """Note an adapter's Jacobian parts; return the gradients at ``lora_A``'s output, None without an adapter."""
        linear = self.linears[name]
        if not hasattr(linear, "lora_A") or linear.disable_adapters:
            return None
        up = linear.lora_B[ADAPTER].weight
        to_b = gradient.to(up.dtype) * linear.scaling[ADAPTER]
        to_a: torch.Tensor = to_b @ up
        if self._wants(name):
            parts = Adapted(self.kept.inputs.get(name), self.kept.low.get(name), to_a, to_b)
            self.adapted.append((f"{self.path}.{name}", parts))
        return to_a


def _product(rows: torch.Tensor, weight: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
    """Return (..., out) times (out, in), added to (..., in)."""
    flat, weight = rows.reshape(-1, rows.shape[-1]), weight.to(rows.dtype)
    result = flat @ weight if onto is None else torch.addmm(onto.reshape(len(flat), -1), flat, weight)
    return result.view(*rows.shape[:-1], -1)


def norm_gradient(
    norm: Any, inputs: torch.Tensor, gradient: torch.Tensor, onto: torch.Tensor | None = None
) -> torch.Tensor:
    """Return gradients at the input of a root mean square norm, in at least float32.

    With ``r = 1 / rms(x)`` and ``g = w * gradient``: ``r g - r^3 mean(g x) x``.

    Args:
        inputs: (batch, tokens, hidden); gradient: (contrasts, batch, tokens, hidden), at its output.
        onto: what is added at the last tokens, (contrasts, batch, last tokens, hidden).
    """
    wide = torch.promote_types(torch.float32, inputs.dtype)
    x = inputs.to(wide)
    size = x.shape[-1]
    inverse = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / size + norm.variance_epsilon).rsqrt()
    result: torch.Tensor = gradient * norm.weight.to(wide)
    along = (result * x).sum(-1, keepdim=True).mul_(inverse**3 / -size)
    result.mul_(inverse).addcmul_(x.expand(result.shape), along)
    if onto is not None:
        result[:, :, -onto.shape[2] :] += onto
    return result
