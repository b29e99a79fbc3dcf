"""Four models' architectures, as their ``config.json`` on the hub has them.

An estimate, a test or a benchmark of their shapes then needs neither the hub nor a licence. The numbers were typed from
public copies of the files, for no hub could be reached; LongRoPE's factors are rounded to five digits.
"""

from __future__ import annotations

from typing import Any

_LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_LONG_FACTOR = [
    *(1.07, 1.12, 1.15, 1.42, 1.57, 1.8, 2.13, 2.13, 3.01, 5.91, 6.95, 9.07, 9.93, 10.71, 11.13, 14.61),
    *(15.41, 19.81, 37.28, 38.28, 38.6, 40.12, 46.2, 50.94, 53.66, 54.937, 56.897, 57.287, 59.987, 60.867, 60.887),
    *(61.717, 62.917, 62.957, 63.417, 63.817, 63.837, 63.897, 63.937, 64.067, 64.114, 64.124, 64.154, 64.194, 64.244),
    *(64.574, 64.69, 64.76),
]
_SHORT_FACTOR = [
    *(1.1, 1.1, 1.1, 1.3, 1.35, 1.35, 1.4, 1.55),
    *[2.0] * 17,
    *[2.05] * 6,
    *(2.1, 2.1, 2.15, 2.25, 2.25, 2.25, 2.25, 2.25, 2.4, 2.45, 2.5, 2.7, 2.7, 2.75, 2.8, 2.9, 3.05),
]

#: By hub id; Touvron et al. (arXiv 2307.09288), Llama 3 (arXiv 2407.21783), Phi-2, and Phi-3 (arXiv 2404.14219) as of
#: its update of July 2024.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _LLAMA
    | {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "meta-llama/Meta-Llama-3-8B": _LLAMA
    | {
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    "microsoft/phi-2": {
        "model_type": "phi",
        "vocab_size": 51200,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    "microsoft/Phi-3-mini-128k-instruct": {
        "model_type": "phi3",
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "long_factor": _LONG_FACTOR, "short_factor": _SHORT_FACTOR},
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attention_dropout": 0.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
    },
}


def architecture(model: str, **changes: Any) -> Any:
    """Return transformers' configuration of one of them.

    Args:
        model: hub id; changes: of its fields, for example ``num_hidden_layers=2``.
    """
    from transformers import AutoConfig

    return AutoConfig.for_model(**ARCHITECTURES[model] | changes)
