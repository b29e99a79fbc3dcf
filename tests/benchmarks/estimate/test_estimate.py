"""Models on the meta device, as large as those that are loaded, and the estimate of a run against what steps hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from benchmarks.estimate.architectures import ARCHITECTURES, architecture
from benchmarks.estimate.run import RunEstimate, estimate
from benchmarks.estimate.shapes import held_bytes, shape_base, shape_model
from benchmarks.harness.allocation import peak_bytes
from benchmarks.harness.record import FOLDER, read
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks, reverse_pass
from laplora.models.base import BaseSpec, load_base_model
from laplora.models.quiet import quiet_loading
from laplora.prompts.rows import Batch
from laplora.readouts.label_tokens import LabelTokens
from training.config import RunConfig
from training.workspace.targets import target_loss

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
SETTINGS = {"llama": hf.LlamaConfig(**SIZES, num_key_value_heads=2), "phi": hf.PhiConfig(**SIZES)}
TOKENS, CLASSES = 24, 3


def run_config(**sections: Any) -> RunConfig:
    fields: dict[str, Any] = {
        "name": "estimated",
        "base": {"quantization": "none", "dtype": "float32"},
        "data": {"dataset": "sst2"},
        "adapter": {"rank": 4, "targets": ["q_proj", "v_proj", "lm_head"]},
        "optimizer": {"steps": 10, "batch_size": 6},
    }
    return RunConfig.model_validate(fields | sections)


def estimated(kind: str = "llama", tokens: int = TOKENS, classes: int = CLASSES, **sections: Any) -> RunEstimate:
    return estimate(run_config(**sections), SETTINGS[kind], tokens=tokens, classes=classes)


@pytest.fixture
def no_scratch() -> Iterator[None]:
    """On some CPUs oneDNN takes the scratch of a matrix product from torch's allocator, which no count knows of."""
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(True)


@pytest.mark.usefixtures("no_scratch")
@pytest.mark.parametrize("kind", SETTINGS)
def test_steps_hold_what_the_estimate_says(kind: str) -> None:
    """Within 6 %: a CPU's kernels of attention have other scratch than a card's."""
    expected = estimated(kind)
    base = hf.AutoModelForCausalLM.from_config(SETTINGS[kind], dtype=torch.float32).requires_grad_(False)
    targets = ["q_proj", "v_proj", "lm_head"]
    adapter = LoraConfig(r=4, target_modules=targets, lora_dropout=0.1, task_type="CAUSAL_LM")
    with quiet_loading():
        model = get_peft_model(base, adapter)
    assert expected.adapter_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    readout, labels = LabelTokens(tuple(range(CLASSES))), torch.zeros(6, dtype=torch.int64)

    def step() -> None:
        loss = target_loss(readout.scores(model, batch(6)).logits, labels, torch.ones(6, CLASSES, dtype=torch.bool))
        loss.backward()

    model.train()
    step()
    model.zero_grad()
    assert peak_bytes(step) == pytest.approx(expected.training_bytes - 8 * expected.adapter_parameters, rel=0.06)
    model.requires_grad_(False).eval()
    blocks, rows = find_blocks(model, CLASSES), batch(8)
    assert reverse_pass(model, readout).kind == ("written_out" if kind == "llama" else "automatic")
    jacobians = peak_bytes(lambda: contrast_jacobians(model, rows, readout, blocks, sums=False))
    assert jacobians == pytest.approx(expected.fit_bytes, rel=0.06)


def batch(rows: int) -> Batch:
    ids = torch.arange(rows * TOKENS).reshape(rows, TOKENS) % 512
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return Batch(ids, mask, (mask.cumsum(1) - 1).clamp_min(0), torch.ones(rows, CLASSES, dtype=torch.bool))


@pytest.mark.slow
def test_the_estimate_of_a_large_model_is_what_was_measured() -> None:
    """All 32 layers of Llama-2-7B, 8 rows of 64 tokens: ``benchmarks.speed --only large`` built and ran them."""
    pytest.importorskip("bitsandbytes")
    config = run_config(base={"quantization": "nf4"}, adapter={"targets": ["q_proj", "v_proj"]})
    found = estimate(config, architecture("meta-llama/Llama-2-7b-hf"), tokens=64, classes=2)
    assert found.posterior_bytes is not None
    fit = found.fit_bytes + found.cpu_bytes  # a model on the CPU has the sums beside it
    measured = {r["name"]: r["value"] * 1e6 for r in read(FOLDER) if r["name"].startswith("large: ")}
    sizes = {"model": found.model_bytes, "answer above the model": found.fit_bytes, "fit above the model": fit}
    for name, size in {**sizes, "file, joint_core": found.posterior_bytes}.items():
        assert size == pytest.approx(measured[f"large: {name}, layers: all"], rel=0.01), name


SMALL_SIZES = SIZES | {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SMALL = {
    "grouped": hf.LlamaConfig(**SMALL_SIZES, num_key_value_heads=2),
    "tied": hf.LlamaConfig(**SMALL_SIZES, tie_word_embeddings=True),
    "biases": hf.PhiConfig(**SMALL_SIZES),
    "fused": hf.Phi3Config(**SMALL_SIZES, pad_token_id=0),
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
