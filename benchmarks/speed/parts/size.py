"""Bytes of a model like Llama's and of its answers, by formula.

d is the hidden width, m the MLP's, g that of keys and values.
"""

from __future__ import annotations

from typing import Any

#: Bytes of a number: bfloat16, in which models run; float32.
HALF, SINGLE = 2, 4


def weight_bytes(config: Any, parameters: int, quantization: str) -> int:
    """Return the model's weights' bytes: linears in NF4 or bfloat16, embeddings in bfloat16, the adapter in float32.

    NF4 with double quantization: half a byte for a weight, a byte for 64, four for 16,384.

    Args:
        parameters: the adapter's.
    """
    wide = config.hidden_size
    linears = config.num_hidden_layers * wide * (2 * wide + 2 * _keys(config) + 3 * config.intermediate_size)
    each = 1 / 2 + 1 / 64 + 4 / (64 * 256) if quantization == "nf4" else HALF
    return int(linears * each) + 2 * HALF * config.vocab_size * wide + SINGLE * parameters


def kept_bytes(config: Any, tokens: int, adapted: int, rank: int) -> int:
    """Return the bytes of one layer's activations that the reverse pass keeps; a model in bfloat16.

    The layer's input, what its norm made of it, the middle of the layer (4d with the queries), keys and values (2g),
    the MLP's two halves (2m); and ``lora_A``'s outputs, float32.

    Args:
        adapted: linears of the layer with an adapter, all of attention's three projections.
    """
    numbers = 4 * config.hidden_size + 2 * _keys(config) + 2 * config.intermediate_size
    return tokens * (HALF * numbers + SINGLE * adapted * rank)


def answer_bytes(config: Any, rows: int, tokens: int, classes: int, *, adapted: int, rank: int) -> int:
    """Return the peak above the model of an answer, q_proj and v_proj adapted; the larger of two moments.

    The last product of the forward pass: every layer's activations, an expanded weight of the MLP with its constants (a
    number for 64), the product's input and output and what it is added to. And the lower norm of the reverse pass's
    second layer (the first is one token long): all activations but the top layer's, in whose place are its Jacobians,
    and a contrast's gradients, 18d in float32 (the layer's output, its middle, q_proj's output, two in the norm) and
    bfloat16 (the same without q_proj's scaling, attention's output, what the norm gets), 8g (keys, values).

    Args:
        tokens: of a row.
    """
    d, m, g, layers = config.hidden_size, config.intermediate_size, _keys(config), config.num_hidden_layers
    total, contrasts = rows * tokens, classes - 1
    kept = kept_bytes(config, total, adapted, rank)
    expanded = d * m * HALF + d * m // 64 * SINGLE
    forward: int = layers * kept + expanded + total * HALF * (m + 2 * d)
    jacobians = SINGLE * rows * contrasts * rank * (3 * d + g)
    gradients = total * (contrasts * (26 * d + 8 * g) + 4 * d)
    return max(forward, kept + (layers - 2) * max(kept, jacobians) + jacobians + gradients)


def _keys(config: Any) -> int:
    """Width of keys and of values."""
    return int(config.num_key_value_heads * config.hidden_size // config.num_attention_heads)
