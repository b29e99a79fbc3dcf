"""Base models and adapters: what is refused by name."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from tiny_models import tiny_base

from laplora.errors import ModelError
from laplora.models.adapters import attach_adapter
from laplora.models.base import BaseSpec, load_base_model, load_tokenizer, resolve_device
from laplora.models.lora import lora_layers

CPU = torch.device("cpu")


def peft(config: Any, base: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, about what it is asked to do here
        return get_peft_model(base or tiny_base("llama"), config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "the adapter is DoRA, which the posterior does not cover: train it with use_dora=False"),
        ({"alora_invocation_tokens": [3]}, r"q_proj uses a LoRA variant \(such as aLoRA\)"),
        ({"modules_to_save": ["norm"]}, r"retrains whole modules \(\['norm'\]\)"),
        ({"bias": "all"}, "trains biases; set bias='none'"),
        ({"bias": "lora_only"}, "trains biases"),
        ({"lora_bias": True}, "trains biases"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens is an embedding with LoRA"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, "sets trainable_token_indices"),
    ],
)
def test_an_adapter_the_posterior_would_not_cover_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = peft(LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options))
    with pytest.raises(ModelError, match=message):
        lora_layers(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft says that it saves the embeddings
        model.save_pretrained(tmp_path)
    base = tiny_base("llama")
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    with pytest.raises(ModelError, match=message.replace("embed_tokens is an", "is on an")):
        attach_adapter(base, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in base.named_parameters() if name in before)


def test_another_kind_of_adapter_is_refused() -> None:
    model = peft(IA3Config(target_modules=["v_proj"], feedforward_modules=[], task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="the adapter is of the kind IA3; only LoRA is covered"):
        lora_layers(model)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ModelError, match="device"):
        resolve_device(device)


@pytest.mark.parametrize("place", ["/nowhere/at/all", "empty"])
def test_a_base_that_is_not_there(tmp_path: Path, place: str) -> None:
    location = str(tmp_path) if place == "empty" else place
    with pytest.raises(ModelError, match=f"base model '{location}': no tokenizer can be loaded"):
        load_tokenizer(location)
    with pytest.raises(ModelError, match=f"base model '{location}': no causal language model can be loaded"):
        load_base_model(location, BaseSpec(location, None, "none", "float32"), device=CPU)


def test_a_base_that_is_an_adapter_of_another_model_is_refused(tiny_base_folder: Path, tmp_path: Path) -> None:
    """Else transformers would load what the adapter names, which nobody looked at."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base_folder, folder)
    load_base_model(str(folder), BaseSpec(str(folder)), device=CPU)
    named = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": str(tiny_base_folder)}
    (folder / "adapter_config.json").write_text(json.dumps(named), encoding="utf-8")
    with pytest.raises(ModelError, match="it is an adapter of another model"):
        load_base_model(str(folder), BaseSpec(str(folder)), device=CPU)
