"""The probe on transformers' classes: a model's logits are read as it gives them, or it is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fast_path import assert_jacobians
from tiny_architectures import tiny_architecture
from tiny_models import add_lora, tiny_base, tiny_task
from torch import nn

from laplora.errors import ModelError
from laplora.jacobians.contrasts import reverse_pass
from laplora.models.probe import check_adapted, check_readout
from laplora.models.readout import label_logits, label_mass, last_hidden
from training.fine_tuning.new_adapter import add_adapter

#: Kinds whose logits are lm_head of the last hidden state, and targets that run on every token.
READ: dict[str, list[str]] = {
    "llama": ["q_proj", "v_proj", "lm_head"],
    "mistral": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj", "lm_head"],
    "phi": ["q_proj", "fc1"],
    "phi3": ["qkv_proj"],
    "gemma": ["q_proj", "down_proj"],
    "gemma3_text": ["q_proj", "v_proj"],
    "gemma3": ["down_proj", "o_proj"],
    "gpt2": ["lm_head"],
    "opt": ["q_proj", "v_proj"],
    "mixtral": ["q_proj", "v_proj"],
    "qwen2_moe": ["q_proj", "v_proj"],
}
#: The same of kinds whose configuration says what is done to the logits, and targets. Logits are near most caps.
TRANSFORMED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "gemma2": (["q_proj", "v_proj", "lm_head"], {"final_logit_softcapping": 1.5}),
    "gemma3_text": (["q_proj", "v_proj"], {"final_logit_softcapping": 1.5}),
    "gemma3n_text": (["down_proj"], {"final_logit_softcapping": 1.5}),
    "gemma4_text": (["down_proj"], {"final_logit_softcapping": 1.5}),
    "gemma4": (["down_proj"], {"final_logit_softcapping": 30.0}),
    "granite": (["q_proj", "v_proj", "lm_head"], {"logits_scaling": 8.0, "attention_multiplier": 0.4}),
    "cohere": (["q_proj", "v_proj"], {"logit_scale": 0.0625}),
}
WRITTEN_OUT = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma3_text", "gemma3", "granite")
#: By kind: targets, and options of its configuration.
KINDS = [
    *((name, targets, {}) for name, targets in READ.items()),
    *((n, *options) for n, options in TRANSFORMED.items()),
]


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, _, options in KINDS])
def test_label_logits_are_the_models_own(name: str, options: dict[str, Any]) -> None:
    """Of every kind that is not refused; the probe's own batch is not the one that is compared here."""
    model, task = tiny_architecture(name, **options), tiny_task(examples=6)
    check_readout(model)
    batch = task.batch()
    with torch.no_grad():
        hidden = last_hidden(model, batch)
        ours = label_logits(model, hidden, task.label_ids)
        whole = model(**batch.inputs).logits[:, -1]
        mass = label_mass(model, hidden, task.label_ids, batch.class_mask)
    torch.testing.assert_close(ours, whole[:, task.label_ids], rtol=1e-4, atol=1e-5)
    expected = whole.softmax(-1)[:, task.label_ids].masked_fill(~batch.class_mask, 0).sum(-1)
    torch.testing.assert_close(mass, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        # of two kinds with this setting one divides by it, the other multiplies
        ("hyperclovax", {"logits_scaling": 8.0}, r"\(logits_scaling=8\): lm_head gave -100, .* -800, expected -12.5"),
        ("llama", {"final_logit_softcapping": 30.0}, r"\(final_logit_softcapping=30\): .* -100, expected -29.92"),
        ("llama", {"logit_scale": 2.0}, r"\(logit_scale=2\): lm_head gave -100, its logit is -100, expected -200"),
        # whose decoder counts padding as tokens, so that a row's answer would depend on the others of its batch
        ("bart", {}, "BartForCausalLM answers otherwise where a row is padded on the left"),
    ],
)
def test_a_model_that_does_not_follow_a_setting_or_positions_is_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_readout(tiny_architecture(name, **options))


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    """Return what lets a model change its logits at the end of its forward."""

    def register(model: Any) -> None:
        original = model.forward

        def forward(**inputs: Any) -> Any:
            output = original(**inputs)
            output.logits = change(output.logits)
            return output

        model.forward = forward

    return register


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(lambda logits: logits * 1.5), "lm_head gave -100, its logit is -150"),
        (changed(lambda logits: logits + 0.5), "lm_head gave .*its logit is"),
        (changed(lambda logits: 30 * torch.tanh(logits / 30)), "lm_head gave -100, its logit is -29.92"),
        (changed(lambda logits: logits[..., :-3]), "gives 61 logits of the 64"),
        # as models do that divide the last hidden state before lm_head
        (lambda m: m.lm_head.register_forward_pre_hook(lambda _, inputs: (inputs[0] / 2,)), "another state|is more"),
        (lambda m: setattr(m.lm_head, "forward", lambda x: 2 * (x @ m.lm_head.weight.T)), "is more than its weight"),
        (lambda m: m.set_output_embeddings(nn.Sequential(m.lm_head)), "no plain output embedding"),
        (lambda m: setattr(m.model, "forward", lambda pixel_values, **_: pixel_values), "run on .*'pixel_values'"),
    ],
)
def test_a_transform_that_no_setting_names_is_refused(change: Callable[[Any], object], message: str) -> None:
    model = tiny_base("llama")
    change(model)
    with pytest.raises(ModelError, match=message):
        check_readout(model)


@pytest.mark.parametrize(("name", "targets", "options"), KINDS)
def test_jacobians_of_every_kind_are_derivatives(name: str, targets: list[str], options: dict[str, Any]) -> None:
    """Of the logits of the model's own forward, a transform of them included."""
    # transformers' eager attention gives NaN at the padding of a float64 model: its softmax is in float32, its mask not
    dtype = torch.float32 if name == "gemma2" else torch.float64
    model = add_lora(tiny_architecture(name, **options), targets, dtype=dtype)
    check_adapted(model)
    assert (reverse_pass(model).kind == "written_out") == (name in WRITTEN_OUT)
    # norms and routers are float32 in a float64 model
    assert_jacobians(model, tiny_task(examples=4), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("qwen2_moe", ["up_proj"], r"module model.layers.0.mlp.shared_expert.up_proj sees inputs of shape \(12, 16\)"),
        ("gemma3", ["q_proj"], r"module model.vision_tower.*q_proj never runs on text.*choose.*'down_proj'.*'o_proj'"),
        ("opt", ["q_proj", "fc1"], r"layers.0.fc1 sees inputs of shape \(12, 16\).*choose.*'k_proj'"),
        ("gemma3n_text", ["q_proj", "modality_router"], "altup.modality_router runs 2 times in one forward pass"),
    ],
)
def test_what_does_not_run_on_each_rows_tokens_is_refused(name: str, targets: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_adapted(add_lora(tiny_architecture(name), targets, dtype=None))


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("llama", "embed_tokens", "model.embed_tokens is a module of the kind Embedding"),
        ("mixtral", "gate_up_proj", "model.layers.0.mlp.experts.gate_up_proj is a parameter that MixtralExperts holds"),
        ("qwen2_moe", "experts", "model.layers.0.mlp.experts is a module of the kind Qwen2MoeExperts"),
        ("llama", "c_attn", r"no module of this base is called that; the linear ones are \['down_proj'"),
    ],
)
def test_targets_that_are_not_linear_are_refused_before_anything_is_adapted(
    name: str, target: str, message: str
) -> None:
    base = tiny_architecture(name)
    adapter = SimpleNamespace(targets=(target,), rank=2, alpha=4, dropout=0.0)
    with pytest.raises(ModelError, match=message):
        add_adapter(base, SimpleNamespace(adapter=adapter, base=SimpleNamespace(model="x")))  # type: ignore[arg-type]


def test_the_probe_leaves_nothing_behind() -> None:
    """No hook, no gradient, no number drawn from torch's generator. Weights that are NaN are for others to refuse."""
    model = add_lora(tiny_base("llama"), ["q_proj"], dtype=None)
    state = torch.get_rng_state()
    check_readout(model.get_base_model())
    check_adapted(model)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.get_base_model().model.norm.weight.data[0] = torch.nan
    check_readout(model.get_base_model())
