"""Llama-2-7B's shapes with random weights, in as many layers as one likes."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.random_models import Quantization, random_model
from laplora.predictive.batch_outputs import AdaptedModel

#: Arguments of a LlamaConfig: what Touvron et al. (arXiv 2307.09288) train.
LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}


def random_llama(
    layers: int = 32,
    *,
    device: str,
    quantization: Quantization,
    rank: int = 8,
    classes: int = 2,
    shape: dict[str, Any] = LLAMA_2_7B,
) -> AdaptedModel:
    """Return ``random_model`` of a Llama, queries and values adapted.

    Args:
        shape: arguments of the ``LlamaConfig``.
    """
    from transformers import LlamaConfig

    settings = LlamaConfig(**shape, num_hidden_layers=layers, tie_word_embeddings=False, use_cache=False)
    return random_model(settings, device=device, quantization=quantization, rank=rank, classes=classes)
