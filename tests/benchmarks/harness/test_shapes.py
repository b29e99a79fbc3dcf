"""Models on the meta device, as large as those that are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from benchmarks.harness.architectures import ARCHITECTURES, architecture
from benchmarks.harness.shapes import held_bytes, shape_base, shape_model
from laplora.models.base import BaseSpec, load_base_model
from laplora.models.quiet import quiet_loading

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
SMALL = {
    "grouped": hf.LlamaConfig(**SIZES, num_key_value_heads=2),
    "tied": hf.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "biases": hf.PhiConfig(**SIZES),
    "fused": hf.Phi3Config(**SIZES, pad_token_id=0),
    "transposed": hf.GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64),
}


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("kind", SMALL)
def test_a_shape_is_as_large_as_the_loaded_model(kind: str, quantization: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = SMALL[kind]
    hf.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).save_pretrained(tmp_path)
    spec = BaseSpec(str(tmp_path), quantization=quantization)
    loaded = load_base_model(str(tmp_path), spec, device=torch.device("cpu"), dequantize=False).model
    shape = shape_base(settings, quantization=quantization, dtype=torch.bfloat16)
    assert held_bytes(shape) == held_bytes(loaded)
    assert all(parameter.is_meta for parameter in shape.parameters())
    targets = ["c_attn"] if kind == "transposed" else ["qkv_proj"] if kind == "fused" else ["q_proj", "v_proj"]
    adapter = LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=kind == "transposed")
    adapted = shape_model(settings, quantization=quantization, dtype=torch.bfloat16, rank=3, targets=targets)
    with quiet_loading():
        assert held_bytes(adapted) == held_bytes(get_peft_model(loaded, adapter))


#: As the hub counts the weights of each.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/Phi-3-mini-128k-instruct": 3_821_079_552,
}


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_the_known_architectures_have_the_published_number_of_parameters(model: str) -> None:
    base = shape_base(architecture(model), quantization="none", dtype=torch.bfloat16)
    assert sum(p.numel() for p in base.parameters()) == PUBLISHED[model]
