"""Models without some of their layers: those of transformers' own classes, built with the others alone."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers as hf
from tiny_architectures import tiny_architecture
from tiny_classifiers import classifier_base
from tiny_models import tiny_task

from benchmarks.estimate.shapes import held_bytes
from laplora.errors import ModelError
from laplora.models.base import BaseSpec, load_base_model
from laplora.models.decoder_layers import decoder_layers
from laplora.models.in_memory import base_spec_of
from laplora.models.layer_removal import remove_layers
from laplora.models.probe import probe_batch
from laplora.models.readout import last_hidden

LAYERS = 5
REMOVED = [1, 2]
#: Kinds of decoders, with settings of layers that are not all alike: windows by layer, and layers without positions.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"eos_token_id": [2, 3, 4, 5, 6]},  # as many as layers, and not one for each
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 3,
        "layer_types": ["full_attention"] * 3 + ["sliding_attention"] * 2,
    },
    "phi3": {},
    "phi": {},
    "gemma3": {"sliding_window": 3, "layer_types": ["full_attention", *["sliding_attention", "full_attention"] * 2]},
    "mixtral": {},
}


def whole(kind: str, **options: Any) -> Any:
    return tiny_architecture(kind, num_hidden_layers=LAYERS, **KINDS[kind] | options)


def built_without(model: Any, removed: list[int]) -> Any:
    """Return a new model of the same class with the other layers alone, their weights copied by name."""
    kept = [number for number in range(LAYERS) if number not in removed]
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    text.num_hidden_layers = len(kept)
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[number] for number in kept]
    other = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    weights = {}
    for name, tensor in model.state_dict().items():
        number = re.search(r"\blayers\.(\d+)\.", name)
        if number is None or "vision" in name:
            weights[name] = tensor
        elif int(number[1]) in kept:
            weights[name.replace(number[0], f"layers.{kept.index(int(number[1]))}.")] = tensor
    other.load_state_dict(weights, strict=True)
    return other.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_model_that_has_the_other_layers_alone(kind: str) -> None:
    """Removed in two parts too. With a place in a cache for each: a text in two parts is the text in one."""
    model = whole(kind)
    expected, batch = built_without(model, REMOVED), tiny_task(examples=6).batch()
    with torch.no_grad():
        before = model(**batch.inputs).logits[:, -1]
        remove_layers(model, [1])
        remove_layers(model, [1])  # which by then is 2
        logits, reference = (m(**batch.inputs).logits[:, -1] for m in (model, expected))
    torch.testing.assert_close(logits, reference, rtol=1e-6, atol=1e-6)
    assert float((logits - before).abs().max()) > 1e-2
    assert model.removed_layers == tuple(REMOVED)
    assert model.config.to_dict() == expected.config.to_dict()
    ids = probe_batch(model).input_ids[:1]
    with torch.no_grad():
        cache = model(ids[:, :4], use_cache=True).past_key_values
        continued = model(ids[:, 4:], cache=cache, use_cache=True)
        torch.testing.assert_close(continued.logits[:, -1], model(ids).logits[:, -1], rtol=1e-5, atol=1e-5)
    assert len(cache.layers) == LAYERS - len(REMOVED)


@pytest.mark.parametrize("kind", ["qwen2", "phi3"])
@pytest.mark.parametrize(("quantization", "dequantize"), [("none", None), ("nf4", False), ("nf4", True)])
def test_a_base_is_loaded_without_its_removed_layers(
    kind: str, quantization: Literal["nf4", "none"], dequantize: bool | None, tmp_path: Path
) -> None:
    """The states are those of the whole base that loses them in memory, and no byte of theirs is held."""
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    tiny_architecture(kind, num_hidden_layers=LAYERS, hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    device = torch.device("cpu")

    def loaded(*removed: int) -> Any:
        spec = BaseSpec(str(tmp_path), quantization=quantization, dtype="float32", removed_layers=removed)
        return load_base_model(str(tmp_path), spec, device=device, dequantize=dequantize).model

    model, other = loaded(0, 3), loaded()
    layer, before = held_bytes(other.model.layers[0]), held_bytes(other)
    remove_layers(other, [0, 3])
    batch = tiny_task(examples=6).batch()
    with torch.no_grad():
        torch.testing.assert_close(last_hidden(model, batch), last_hidden(other, batch), rtol=0, atol=0)
    assert held_bytes(model) == before - 2 * layer
    assert not any(parameter.requires_grad for parameter in model.parameters())
    spec = base_spec_of(model)
    assert spec == BaseSpec(str(tmp_path), None, quantization, "float32", None, (0, 3))
    assert base_spec_of(loaded()).removed_layers == ()


@pytest.mark.parametrize("removed", [[2, 1], [5], [-1], [0, 1, 2, 3, 4]])
def test_numbers_that_cannot_be_are_refused_and_change_nothing(removed: list[int]) -> None:
    model = whole("llama")
    with pytest.raises(
        ModelError, match=r"expected ascending numbers below 5|no layer is left where all 5 are removed"
    ):
        remove_layers(model, removed)
    assert len(model.model.layers) == model.config.num_hidden_layers == LAYERS


def test_models_without_such_layers_and_whose_layers_need_each_other_are_refused() -> None:
    """The first two's decoder is not where its class says, or does not count its layers."""
    for kind in ("Llama4TextConfig", "BltConfig"):
        with torch.device("meta"):
            model = hf.AutoModelForCausalLM.from_config(getattr(hf, kind)())
        with pytest.raises(ModelError, match=rf"{type(model).__name__} keeps its .*layers in no list"):
            decoder_layers(model)
    with pytest.raises(ModelError, match="OPTForCausalLM keeps its 2 layers in no list"):
        remove_layers(tiny_architecture("opt"), [1])
    with pytest.raises(ModelError, match=r"Gemma4ForCausalLM does not run without its layers \[1\]"):
        remove_layers(tiny_architecture("gemma4_text"), [1])  # later layers take keys and values from it
    by_number = whole("llama")
    by_number.model.layers[3].register_forward_hook(lambda layer, _, output: output * layer.self_attn.layer_idx)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM without its layers \[1\] is not what it is where they"):
        remove_layers(by_number, [1])
    with pytest.raises(ModelError, match="is a classifier"):
        remove_layers(classifier_base("llama"), [0])
