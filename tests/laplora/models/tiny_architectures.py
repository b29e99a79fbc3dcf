"""Tiny random models of transformers' own classes, of many kinds of decoder: each with its quirks, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from tiny_models import SETTINGS, VOCABULARY, gemma3_that_sees, generator

_TOKENS = {name: SETTINGS[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
#: Of Gemma 3n and 4: the last two of four layers take keys and values from the others, so their projections never run.
_SHARED_KEYS: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "head_dim": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_GEMMA_4 = SETTINGS | _SHARED_KEYS | {"global_head_dim": 8}
_GEMMA_4_REST: dict[str, Any] = {"vision_config": None, "audio_config": None}
_GEMMA_4_REST |= {f"{name}_token_id": 58 + i for i, name in enumerate(("video", "audio", "image", "boi", "eoi"))}
_GEMMA_3N = (
    SETTINGS
    | _SHARED_KEYS
    | {"intermediate_size": [32] * 4, "laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4}
)
_EXPERTS = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4}

_OPT = {name: value for name, value in SETTINGS.items() if name not in ("intermediate_size", "num_key_value_heads")}
CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **o: hf.LlamaConfig(**SETTINGS | o),
    "mistral": lambda **o: hf.MistralConfig(**SETTINGS | o),
    "qwen2": lambda **o: hf.Qwen2Config(**SETTINGS | o),
    "qwen3": lambda **o: hf.Qwen3Config(**SETTINGS | {"head_dim": 8} | o),
    "phi": lambda **o: hf.PhiConfig(**SETTINGS | o),
    "phi3": lambda **o: hf.Phi3Config(**SETTINGS | o),
    "gemma": lambda **o: hf.GemmaConfig(**SETTINGS | {"head_dim": 8} | o),
    "gemma2": lambda **o: hf.Gemma2Config(**SETTINGS | {"head_dim": 8, "query_pre_attn_scalar": 8} | o),
    "gemma3_text": lambda **o: hf.Gemma3TextConfig(**SETTINGS | {"head_dim": 8} | o),
    "gemma3": lambda **o: gemma3_that_sees(SETTINGS | {"head_dim": 8} | o),
    "gemma3n_text": lambda **o: hf.Gemma3nTextConfig(**_GEMMA_3N | o),
    "gemma4_text": lambda **o: hf.Gemma4TextConfig(**_GEMMA_4 | o),
    "gemma4": lambda **o: hf.Gemma4Config(text_config=_GEMMA_4 | o, **_GEMMA_4_REST),
    "granite": lambda **o: hf.GraniteConfig(**SETTINGS | o),
    "hyperclovax": lambda **o: hf.HyperCLOVAXConfig(**SETTINGS | o),
    "cohere": lambda **o: hf.CohereConfig(**SETTINGS | o),
    "gpt2": lambda **o: hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, **_TOKENS, **o
    ),
    # "gelu" is without the kinks of relu, where a difference is no derivative.
    "opt": lambda **o: hf.OPTConfig(ffn_dim=32, word_embed_proj_dim=16, activation_function="gelu", **_OPT, **o),
    "mixtral": lambda **o: hf.MixtralConfig(**SETTINGS | {"num_local_experts": 4} | o),
    "qwen2_moe": lambda **o: hf.Qwen2MoeConfig(**SETTINGS | _EXPERTS | o),
    "bart": lambda **o: hf.BartConfig(
        vocab_size=VOCABULARY, d_model=16, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=32, **o
    ),
}


def tiny_architecture(name: str, *, seed: int = 0, **options: Any) -> Any:
    """Return a random model in float32, evaluation mode, as ``AutoModelForCausalLM`` builds it from its configuration.

    Args:
        options: of the configuration, of its text part where it has several.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers', about attributes and defaults of its own
        config = CONFIGS[name](**options)
        attention = "eager" if name == "gemma2" else "sdpa"  # as load_base_model chooses
        model: Any = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    if name in ("mixtral", "qwen2_moe"):
        model.set_experts_implementation("eager")  # the grouped product is in float32 and less only
    draw = generator(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=draw) / weight.shape[-1] ** 0.5)
    return model.eval()
