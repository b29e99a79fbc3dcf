"""LoRA as people have it: scalings, ranks and targets of all kinds, any adapter name, files with embeddings in them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_path import assert_jacobians
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_architectures import tiny_architecture
from tiny_models import Task, add_lora, tiny_base, tiny_task

from laplora.errors import ArtifactCorruptError, ModelError
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.models.adapters import attach_adapter, save_adapter
from laplora.models.lora import lora_layers
from laplora.models.probe import check_adapted
from laplora.models.readout import label_logits, last_hidden

FILE, LAYER = "adapter_model.safetensors", "base_model.model.model.layers.1"


@pytest.mark.parametrize(
    ("architecture", "targets", "options"),
    [
        ("llama", ["q_proj", "v_proj"], {"use_rslora": True}),
        ("llama", ["q_proj", "v_proj"], {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 7}}),
        ("llama", "all-linear", {}),
        ("llama", r".*layers\.1\..*(q|down)_proj", {}),
        ("phi3", "all-linear", {}),
        ("gpt2", ["c_attn", "c_proj", "c_fc"], {"fan_in_fan_out": True}),
    ],
)
def test_jacobians_are_those_of_the_adapter_as_peft_runs_it(
    architecture: str, targets: list[str] | str, options: dict[str, Any]
) -> None:
    """Against one autograd call per logit and example of PEFT's own forward, float64 but for norms."""
    model = add_lora(tiny_architecture(architecture), targets, **options)
    check_adapted(model)
    assert_jacobians(model, tiny_task(examples=4), rtol=1e-3, atol=1e-5)


def test_expressions_are_written_as_paths_and_none_of_a_rank_is_tried(tmp_path: Path) -> None:
    """PEFT takes them from whoever trains; a folder's could run for ever."""
    patterns = {r"layers\.[0-1]\.self_attn\.(q|k)_proj": 4}
    options: dict[str, Any] = {"rank_pattern": patterns, "alpha_pattern": {r"((layers)+)+\.1\..*": 9, "q_proj": 7}}
    model = add_lora(tiny_architecture("llama"), r".*layers\.1\..*(q|v)_proj", dtype=None, **options)
    task = tiny_task(examples=3)
    save_adapter(model, tmp_path)
    again = attach_adapter(tiny_architecture("llama"), tmp_path)
    assert torch.equal(logits_of(again, task), logits_of(model, task))
    settings = tmp_path / "adapter_config.json"
    written = json.loads(settings.read_text())
    assert written["alpha_pattern"].keys() <= {f"^model\\.layers\\.1\\.self_attn\\.{one}_proj" for one in "qv"}
    settings.write_text(json.dumps(written | {"rank_pattern": {**patterns, "(.+)+x": 2, "**": 3}}))
    assert torch.equal(logits_of(attach_adapter(tiny_architecture("llama"), tmp_path), task), logits_of(model, task))
    settings.write_text(json.dumps(written | {"alpha_pattern": {"**": 3}}))
    with pytest.raises(ArtifactCorruptError, match="no regular expression"):
        attach_adapter(tiny_architecture("llama"), tmp_path)


def logits_of(model: Any, task: Task) -> torch.Tensor:
    with torch.no_grad():
        return label_logits(model, last_hidden(model, task.batch()), task.label_ids)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "phi"])
def test_an_adapter_of_any_name_among_others(architecture: str, tmp_path: Path) -> None:
    """Its logits, Jacobians and file are those of the same adapter alone under PEFT's usual name."""
    task, targets = tiny_task(examples=3), ["q_proj", "lm_head"]
    one = add_lora(tiny_architecture(architecture), targets, dtype=None)
    two = add_lora(tiny_architecture(architecture), targets, dtype=None, name="mine")
    # Another that is not active, of other modules: their faults and matrices are not the active one's.
    other = type(one.peft_config["default"])(r=5, target_modules=["v_proj", "embed_tokens"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of merging adapters of a tied lm_head
        two.add_adapter("another", other)
    two.eval()
    blocks = find_blocks(one, task.classes)
    assert find_blocks(two, task.classes) == blocks
    expected, got = (contrast_jacobians(model, task.batch(), task.label_ids, blocks) for model in (one, two))
    assert torch.equal(got.logits, expected.logits)
    assert all(torch.equal(a.jacobian, b.jacobian) for a, b in zip(got.blocks, expected.blocks, strict=True))
    for number, model in enumerate((one, two)):
        save_adapter(model, tmp_path / str(number))
    file, same = (load_file(tmp_path / number / FILE) for number in "01")
    assert same.keys() == file.keys()
    assert all("lora_" in name for name in file)  # not the embedding of a tied lm_head, which peft would save
    assert all(torch.equal(same[name], file[name]) for name in file)
    back = attach_adapter(tiny_architecture(architecture), tmp_path / "1")
    torch.testing.assert_close(logits_of(back, task), expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.base_model.set_adapter(["default", "second"]), r"2 active adapters \['default', 'second'\]"),
        (lambda m: m.get_submodule(f"{LAYER}.self_attn.q_proj").set_adapter(["second"]), r"layers.1.*q_proj runs"),
        (lambda m: m.merge_adapter(), r"adapters \['default'\] are merged .*call model.unmerge_adapter"),
        (lambda m: m.merge_and_unload(), "got a LlamaForCausalLM without one: if its adapter was merged into it"),
    ],
)
def test_adapters_that_do_not_run_alone_are_refused(change: Callable[[Any], Any], message: str) -> None:
    model = add_lora(tiny_base("llama"), ["q_proj"], dtype=None)
    model.add_adapter("second", model.peft_config["default"])
    assert len(lora_layers(model)) == 2
    changed = change(model) or model
    with pytest.raises(ModelError, match=message):
        lora_layers(changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "the adapter is DoRA, which the posterior does not cover: train it with use_dora=False"),
        ({"alora_invocation_tokens": [3]}, "sets alora_invocation_tokens"),
        ({"modules_to_save": ["norm"]}, r"retrains whole modules \(\['norm'\]\)"),
        ({"bias": "all"}, "trains biases; set bias='none'"),
        ({"lora_bias": True}, "trains biases"),
        ({"feedforward_modules": []}, "of the kind IA3; only LoRA is covered"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens is an embedding with LoRA"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, "sets trainable_token_indices"),
        ({"target_parameters": ["q_proj.weight"], "target_modules": []}, "target_parameters"),
    ],
)
def test_an_adapter_the_posterior_would_not_cover_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    kind = IA3Config if "feedforward_modules" in options else partial(LoraConfig, r=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, about what it is asked to do here
        config = kind(**{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options)
        model = get_peft_model(tiny_base("llama"), config)
        model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        lora_layers(model)
    base = tiny_base("llama")
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    with pytest.raises(ModelError, match=message.replace("embed_tokens is an", "is on an")):
        attach_adapter(base, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in base.named_parameters() if name in before)


def saved(folder: Path, targets: list[str], *, tied: bool, embeddings: bool | str = "auto") -> Any:
    """Save a tiny adapter as PEFT does, and return its model."""
    model = add_lora(tiny_base("llama", tied=tied), targets, dtype=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft says that it saves the embeddings
        model.save_pretrained(folder, save_embedding_layers=embeddings)
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("targets", "embeddings", "count"),
    [(["q_proj", "lm_head"], "auto", 1), (["q_proj"], True, 2), (["q_proj"], "auto", 0)],
)
def test_a_file_with_the_bases_embeddings_loads(
    targets: list[str], embeddings: bool | str, count: int, tied: bool, tmp_path: Path
) -> None:
    model, task = saved(tmp_path, targets, tied=tied, embeddings=embeddings), tiny_task(examples=4)
    assert sum("lora_" not in name for name in load_file(tmp_path / FILE)) == count
    again = attach_adapter(tiny_base("llama", tied=tied), tmp_path)
    assert torch.equal(logits_of(model, task), logits_of(again, task))
    # In a wider number format, as peft.prepare_model_for_kbit_training leaves them: bfloat16 values in float32.
    base = tiny_base("llama", tied=tied).bfloat16()
    add_lora(base.float(), targets, dtype=None).save_pretrained(tmp_path / "wide", save_embedding_layers=True)
    attach_adapter(tiny_base("llama", tied=tied).bfloat16(), tmp_path / "wide")


def test_an_expression_for_modules_which_could_run_for_ever_is_not_tried(tmp_path: Path) -> None:
    model = get_peft_model(tiny_base("llama"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    save_adapter(model, tmp_path)
    settings = tmp_path / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"target_modules": "(.+)+x"}))
    assert list(lora_layers(attach_adapter(tiny_base("llama"), tmp_path))) == list(lora_layers(model))


def test_an_adapter_without_a_task_type_is_of_the_class_that_peft_notes(tmp_path: Path) -> None:
    """It loads again as laplora saves it, and on no model of another class."""
    pattern, task = r".*layers\.1\..*q_proj", tiny_task(examples=4)
    model = add_lora(tiny_base("llama"), pattern, dtype=None, task_type=None)
    model.save_pretrained(tmp_path / "one")
    settings = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert settings["auto_mapping"]["base_model_class"] == "LlamaForCausalLM"
    again = attach_adapter(tiny_base("llama"), tmp_path / "one")
    save_adapter(again, tmp_path / "two")
    assert json.loads((tmp_path / "two" / "adapter_config.json").read_text())["auto_mapping"] is None
    for loaded in (again, attach_adapter(tiny_base("llama"), tmp_path / "two")):
        assert torch.equal(logits_of(model, task), logits_of(loaded, task))
    with pytest.raises(ModelError, match=r"trained on a LlamaForCausalLM \(its auto_mapping\), which the base is not"):
        attach_adapter(tiny_base("phi"), tmp_path / "one")
    settings["auto_mapping"] = {"parent_library": "transformers"}
    (tmp_path / "one" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="auto_mapping names no base_model_class"):
        attach_adapter(tiny_base("llama"), tmp_path / "one")


@pytest.mark.parametrize(
    ("targets", "name", "change", "message"),
    [
        (["lm_head"], "lm_head.base_layer", lambda t: t + 0.01, "lm_head.base_layer.weight has other values than"),
        (["q_proj"], "model.embed_tokens", lambda t: t * torch.nan, "model.embed_tokens.weight has other values"),
        (["q_proj"], "lm_head", lambda t: t[:-1], r"lm_head.weight is \(63, 16\), the base's is \(64, 16\)"),
        # of another module: PEFT would load it over the base's weight without a word
        (["q_proj"], "model.norm", lambda _: torch.zeros(16), r"not expected .*norm\.weight"),
    ],
)
def test_other_embeddings_than_the_bases_are_refused(
    targets: list[str], name: str, change: Callable[[torch.Tensor | None], torch.Tensor], message: str, tmp_path: Path
) -> None:
    saved(tmp_path, targets, tied=False, embeddings=True)
    tensors = load_file(tmp_path / FILE)
    tensors[f"base_model.model.{name}.weight"] = change(tensors.get(f"base_model.model.{name}.weight")).contiguous()
    save_file(tensors, tmp_path / FILE, {"format": "pt"})
    base = tiny_base("llama")
    before = {name: p.clone() for name, p in base.named_parameters()}
    with pytest.raises((ModelError, ArtifactCorruptError), match=message):
        attach_adapter(base, tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
