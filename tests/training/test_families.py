"""Families of decoders, each from its true configuration to served answers: trained, fitted, packaged, loaded again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_runs import job, sentiment_config, sentiment_rows
from tiny_tokenizer import tiny_tokenizer

from laplora.models.held_weights import packed_linears
from laplora.predictor import Predictor
from training.config import load_config

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1}
UNGROUPED, TIED = {"num_key_value_heads": 4}, {"tie_word_embeddings": True}
HEADS, WINDOW = {"head_dim": 16}, {"sliding_window": 8}
GEMMA = HEADS | WINDOW | {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16}
LLAMA_3 = {"rope_type": "llama3", "rope_theta": 500000.0, "original_max_position_embeddings": 64}
LLAMA_3 |= {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
HALF_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
FACTORS = {"logits_scaling": 8.0, "residual_multiplier": 0.22, "embedding_multiplier": 12.0}
EXPERTS = {"num_experts_per_tok": 2}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """A family of decoders.

    Attributes:
        kind: of transformers' configurations; options: of it, beside the sizes.
        targets: adapted modules.
        written_out: whether the reverse pass of its layers is.
        packed: 4-bit linears of the tiny model.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ("q_proj", "v_proj", "lm_head")
    written_out: bool = True
    packed: int = 14


FAMILIES: dict[str, Family] = {
    "Llama 2": Family("Llama", UNGROUPED, LINEAR),
    "Llama 3": Family("Llama", {"rope_parameters": LLAMA_3}),
    "SmolLM2": Family("Llama", TIED, LINEAR),
    "Mistral": Family("Mistral", WINDOW),
    "Qwen2": Family("Qwen2", TIED),
    "Qwen2.5": Family("Qwen2", {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}),
    "Qwen3": Family("Qwen3", HEADS),
    "Gemma 2": Family(
        "Gemma2", GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}, written_out=False
    ),
    "Gemma 3": Family("Gemma3Text", GEMMA),
    "Phi-2": Family("Phi", UNGROUPED, ("q_proj", "v_proj", "dense", "fc1", "lm_head"), written_out=False, packed=12),
    "Phi-3": Family("Phi3", WINDOW, ("qkv_proj", "o_proj"), packed=8),
    "Phi-4 mini": Family(
        "Phi3", TIED | {"rope_parameters": HALF_ROTARY}, ("qkv_proj", "gate_up_proj", "lm_head"), packed=8
    ),
    "OLMo 2": Family("Olmo2"),
    "SmolLM3": Family("SmolLM3", {"no_rope_layer_interval": 2}),
    "Granite": Family("Granite", FACTORS | {"attention_multiplier": 0.0625}),
    "GPT-2": Family("GPT2", targets=("c_attn", "c_fc"), written_out=False, packed=8),
    # The experts are parameters of one module, which stay as they are.
    "Mixtral": Family("Mixtral", EXPERTS | {"num_local_experts": 4}, LINEAR[:4], written_out=False, packed=8),
    "Qwen3-MoE": Family(
        "Qwen3Moe",
        HEADS | EXPERTS | {"num_experts": 4, "moe_intermediate_size": 32},
        ("q_proj", "v_proj"),
        written_out=False,
        packed=8,
    ),
}

#: One of each kind: grouped heads, windows, fused projections, transposed ones, experts. The others are exhaustive.
EVERY_TIME = ("Llama 3", "Gemma 3", "Phi-3", "GPT-2", "Mixtral")


def save_base(folder: Path, family: Family) -> Path:
    """Write a random model of a family in bfloat16, with the tiny tokenizer, and return the folder."""
    tokenizer = tiny_tokenizer()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # transformers', about attributes and defaults of its own
        torch.manual_seed(0)
        tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        make = getattr(hf, f"{family.kind}Config")
        config = make(vocab_size=len(tokenizer), **SIZES | tokens | family.options)
        hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.exhaustive) for name in FAMILIES]
)
def test_a_family_from_training_to_served_answers(name: str, tmp_path: Path) -> None:
    """Loading replays the golden answers: once on expanded weights, as training measured, and once on packed ones."""
    family = FAMILIES[name]
    base = save_base(tmp_path / "base", family)
    config_file = sentiment_config(
        tmp_path,
        base,
        adapter={"rank": 4, "alpha": 8, "targets": list(family.targets)},
        optimizer={"learning_rate": 5e-3, "steps": 2, "batch_size": 4},
        laplace={"rank": 4, "oversampling": 2, "batch_size": 8},
    )
    small = ["base.quantization=nf4", "data.train=16", "data.calibration=20", "data.test=12"]
    assert job("run", config_file, *small) == 0
    artifact = load_config(config_file, small).artifact_dir
    rows = [{"text": row["text"]} for row in sentiment_rows()[-4:]]
    answers = []
    for dequantize, held in ((None, "expanded"), (False, "packed")):
        predictor = Predictor.load(artifact, device="cpu", dequantize=dequantize)
        assert predictor.weights.held == held
        assert predictor.reverse_pass.kind == ("written_out" if family.written_out else "automatic")
        answers.append(predictor.predict([predictor.encode(row, truncate=False) for row in rows]))
    assert len(packed_linears(predictor.base.model)) == family.packed
    for one, two in zip(*answers, strict=True):
        assert one.predictive == "laplace"
        assert sum(one.probs.values()) == pytest.approx(1)
        assert two.probs == pytest.approx(one.probs, abs=1e-3)
