"""The form of a decoder's layers, read from its modules once: the written-out reverse pass runs over this record.

With root mean square norms ``n`` (Zhang and Sennrich, arXiv 1910.07467), each of which may be absent, a layer is

    ``m = x + r n2(O attention(Q n1(x), K n1(x), V n1(x)))``, ``y = m + r n4(D (a(G n3(m)) * U n3(m)))``.

Q, K and V may be one linear, and so may G and U. Queries and keys may be normed, per head or together, and then turned
by rotary embeddings (Su et al., arXiv 2104.09864), all or in part. Query heads may share keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

#: Decoder layers of this form, by the names of their classes in transformers: what is added to their norms' weights.
_NORM_OFFSETS = {
    "LlamaDecoderLayer": 0.0,
    "MistralDecoderLayer": 0.0,
    "MinistralDecoderLayer": 0.0,
    "Qwen2DecoderLayer": 0.0,
    "Qwen3DecoderLayer": 0.0,
    "Phi3DecoderLayer": 0.0,
    "GraniteDecoderLayer": 0.0,
    "SmolLM3DecoderLayer": 0.0,
    "Olmo2DecoderLayer": 0.0,
    "Olmo3DecoderLayer": 0.0,
    "GemmaDecoderLayer": 1.0,
    "Gemma3DecoderLayer": 1.0,
}
_Names = tuple[str | None, ...]
#: The places of a layer's norms, and their names in three kinds of layers: before the branches, after them, or both.
_PLACES = ("before_attention", "after_attention", "before_mlp", "after_mlp")
_BEFORE: _Names = ("input_layernorm", None, "post_attention_layernorm", None)
_AFTER: _Names = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
_AROUND: _Names = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


@dataclass(frozen=True, eq=False)
class Norm:
    """A root mean square norm: ``(offset + weight) x / sqrt(mean(x^2) + epsilon)``, over the last axis."""

    module: Any
    offset: float
    epsilon: float


@dataclass(frozen=True, eq=False)
class Activation:
    """An MLP's activation.

    Attributes:
        value: of the gate.
        gradient: of what is given at its output, and the gate.
    """

    value: Callable[[torch.Tensor], torch.Tensor]
    gradient: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


_SILU = Activation(F.silu, torch.ops.aten.silu_backward)
_GELU_TANH = Activation(partial(F.gelu, approximate="tanh"), partial(torch.ops.aten.gelu_backward, approximate="tanh"))
_ACTIVATIONS = {"SiLU": _SILU, "SiLUActivation": _SILU, "GELUTanh": _GELU_TANH}


@dataclass(frozen=True, eq=False)
class LayerForm:
    """One decoder layer.

    Attributes:
        module: the layer; linears: its linears, by path in the layer.
        attention: paths of the linears of queries, keys and values, three or one; output: of the attention's last.
        gate_up: paths of the MLP's first linears, two or one; down: of its last.
        widths: entries of queries, keys and values of a token; head_size: of one head of them.
        scale: of the scores; rotary: whether queries and keys are turned.
        head_norms: of queries and keys, over a head's entries or over all; None without.
        norms: those on the residual's branches that the layer has, by place.
        residual: what a branch is multiplied by before it is added.
    """

    module: Any
    linears: Mapping[str, Any]
    attention: tuple[str, ...]
    output: str
    gate_up: tuple[str, ...]
    down: str
    widths: tuple[int, int, int]
    head_size: int
    scale: float
    rotary: bool
    head_norms: tuple[Norm, Norm] | None
    norms: Mapping[str, Norm]
    activation: Activation
    residual: float


@dataclass(frozen=True, eq=False)
class DecoderForm:
    """The decoder of a model that has the covered form, its modules looked up once.

    Attributes:
        norm: of the state that the decoder returns.
        prefix: where its layers are, by path in the model.
        layers: from the first to the last.
    """

    norm: Norm
    prefix: str
    layers: tuple[LayerForm, ...]


def decoder_form(base: Any) -> DecoderForm | None:
    """Return the form of a causal language model without PEFT's wrapping; None where it is not the covered one.

    Names of classes and modules alone decide. Whether the pass is right is measured (``laplora.jacobians.contrasts``).
    """
    prefix = base.base_model_prefix
    decoder: Any = getattr(base, prefix, None)
    if hasattr(decoder, "language_model"):  # one that also sees
        decoder, prefix = decoder.language_model, f"{prefix}.language_model"
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or base.config.get_text_config()._attn_implementation != "sdpa":
        return None
    offsets = {_NORM_OFFSETS.get(type(layer).__name__) for layer in layers}
    offset = offsets.pop() if len(offsets) == 1 else None
    if offset is None:
        return None
    norm, forms = _norm(getattr(decoder, "norm", None), offset), [_layer_form(layer, offset) for layer in layers]
    covered = tuple(form for form in forms if form is not None)
    return None if norm is None or len(covered) < len(forms) else DecoderForm(norm, f"{prefix}.layers", covered)


def _layer_form(layer: Any, offset: float) -> LayerForm | None:
    """Return the form of a layer of a known class; None where a part of it is of another kind."""
    attention, mlp = layer.self_attn, layer.mlp
    fused = hasattr(attention, "qkv_proj")
    projections = ("qkv_proj",) if fused else ("q_proj", "k_proj", "v_proj")
    query_key_value = tuple(f"self_attn.{name}" for name in projections)
    gate_up = ("mlp.gate_up_proj",) if hasattr(mlp, "gate_up_proj") else ("mlp.gate_proj", "mlp.up_proj")
    output, down = "self_attn.o_proj", "mlp.down_proj"
    linears = {name: layer.get_submodule(name) for name in (*query_key_value, output, *gate_up, down)}
    activation = _ACTIVATIONS.get(type(getattr(mlp, "act_fn", getattr(mlp, "activation_fn", None))).__name__)
    names = _AROUND if hasattr(layer, "pre_feedforward_layernorm") else _BEFORE
    names = names if hasattr(layer, "input_layernorm") else _AFTER
    norms = {
        place: _norm(getattr(layer, name), offset)
        for place, name in zip(_PLACES, names, strict=True)
        if name is not None
    }
    head_norms = [_norm(getattr(attention, name), offset) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    all_norms = [norm for norm in (*norms.values(), *head_norms) if norm is not None]
    if not (
        activation is not None
        and len(all_norms) == len(norms) + len(head_norms)
        and len(head_norms) in (0, 2)
        and all(_is_linear(linear) for linear in linears.values())
        and attention.is_causal
    ):
        return None
    shared = attention.head_dim * attention.config.num_key_value_heads
    query = _plain(linears[query_key_value[0]]).out_features - (2 * shared if fused else 0)
    return LayerForm(
        module=layer,
        linears=linears,
        attention=query_key_value,
        output=output,
        gate_up=gate_up,
        down=down,
        widths=(query, shared, shared),
        head_size=attention.head_dim,
        scale=attention.scaling,
        rotary=bool(getattr(attention, "use_rope", True)),
        head_norms=(all_norms[-2], all_norms[-1]) if head_norms else None,
        norms={place: norm for place, norm in norms.items() if norm is not None},
        activation=activation,
        residual=float(getattr(layer, "residual_multiplier", 1.0)),
    )


def _norm(module: Any, offset: float) -> Norm | None:
    """Return a module as a norm; None where it is none."""
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if epsilon is None or not isinstance(getattr(module, "weight", None), torch.Tensor) or hasattr(module, "bias"):
        return None
    return Norm(module, offset, float(epsilon))


def _plain(linear: Any) -> Any:
    return getattr(linear, "base_layer", linear)


def _is_linear(linear: Any) -> bool:
    plain = _plain(linear)
    return isinstance(plain, nn.Linear) and (plain.weight.is_floating_point() or hasattr(plain.weight, "quant_state"))
