"""A user's model and what may have happened to it: answers are the fitted model's, or a named error says what to do."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from head_artifacts import letters
from peft import LoraConfig
from tiny_architectures import tiny_architecture
from tiny_classifiers import TARGETS, adapted_classifier, head_alone
from tiny_models import add_lora, tiny_base
from transformers import AutoModelForCausalLM, CanineTokenizer

import laplora
from laplora.errors import ConfigError, GoldenMismatchError, LabelTokenError, ModelError
from laplora.fitting.passes import block_weights
from laplora.jacobians.contrasts import covered_blocks
from laplora.predictive.lora_weights import lora_parameters
from laplora.prior.choices import squared_distances

SETTINGS = laplora.FitSettings.model_validate({"laplace": {"rank": 2, "joint_rank": 6}})
LABELS = {"no": " w1", "yes": " w2"}
Rows = list[dict[str, Any]]


def model() -> Any:
    return add_lora(tiny_base("llama"), ["q_proj", "v_proj"], dtype=None)


def classifier(given: Any, template: str = "{text} z") -> laplora.Classifier:
    return laplora.Classifier(given, letters("[CLS] $A"), template, LABELS)


def rows(count: int, seed: int) -> Rows:
    draw = random.Random(seed)
    return [
        {"text": " ".join(draw.choices("abcdefghijkl", k=draw.randint(1, 6))), "label": ("no", "yes")[i % 2]}
        for i in range(count)
    ]


def fitted(given: Any) -> laplora.CalibratedPosterior:
    return laplora.fit(classifier(given), rows(20, 0), rows(12, 1), settings=SETTINGS, progress=False)


@pytest.fixture(scope="module")
def posterior() -> laplora.CalibratedPosterior:
    """A fit, which leaves the model and torch as they were."""
    given = model()

    def state() -> tuple[Any, ...]:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in given.modules()]
        return hooks, [p.requires_grad for p in given.parameters()], [p._version for p in given.parameters()]

    before, random_state = state(), torch.get_rng_state()
    found = fitted(given)
    found.predict(rows(3, 2))
    assert state() == before
    assert torch.equal(torch.get_rng_state(), random_state)
    return found


def test_no_answer_with_dropout_nor_by_another_adapter() -> None:
    """By predictives without Jacobians too: with dropout they were other numbers at every call."""
    posterior = fitted(model())
    given, asked = posterior.classifier.model, rows(2, 2)
    expected = [answer.probs for answer in posterior.predict(asked)]
    given.train()
    for predictive in ("map", "temperature", "laplace"):
        with pytest.raises(ModelError, match="training mode"):
            posterior.predict(asked, predictive)
    given.eval()
    given.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    given.set_adapter("other")
    for ask in (lambda: posterior.predict(asked), lambda: posterior.evaluate(asked), lambda: posterior.save("never")):
        with pytest.raises(ModelError, match="another adapter"):
            ask()
    given.set_adapter("default")
    assert [answer.probs for answer in posterior.predict(asked)] == expected
    weight = next(iter(lora_parameters(given).values())).data  # torch counts no change by this
    for change in (lambda: weight[0, 0].add_(1e-3), lambda: weight.copy_(weight.flip(0))):
        before = weight.clone()
        change()
        for ask in (
            lambda: posterior.predict(asked),
            lambda: posterior.evaluate(asked),
            lambda: posterior.save("never"),
        ):
            with pytest.raises(ModelError, match=r"the weights of .* were changed in place"):
                ask()
        weight.copy_(before)
    assert [answer.probs for answer in posterior.predict(asked)] == expected
    given.base_model.disable_adapter_layers()
    with pytest.raises(ModelError, match=r"the adapter is disabled, at .*q_proj"):
        posterior.predict(asked)


def test_what_no_classifier_can_be_made_of() -> None:
    """A refused model keeps which weights are trained."""
    disabled, doubled = model(), model().requires_grad_(False)
    disabled.base_model.disable_adapter_layers()
    with pytest.raises(ModelError, match=r"the adapter is disabled, at .*q_proj"):
        classifier(disabled)
    doubled.get_base_model().lm_head.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    with pytest.raises(ModelError):
        classifier(doubled)
    assert not any(parameter.requires_grad for parameter in doubled.parameters())
    with pytest.raises(ModelError, match=r"must be a fast one, .* got CanineTokenizer"):
        laplora.Classifier(model(), CanineTokenizer(), "{text} z", LABELS)
    with pytest.raises(LabelTokenError, match="ends every text with token 2"):
        laplora.Classifier(model(), letters("[CLS] $A [SEP]"), "{text} z", LABELS)
    with pytest.raises(ConfigError, match="max_tokens is 7"):
        laplora.Classifier(model(), letters("[CLS] $A"), "{text} z", LABELS, max_tokens=7)
    with pytest.raises(ConfigError, match="the prompt would hold the answer"):
        laplora.fit(classifier(model(), "{tone} {text} z"), rows(20, 0), "split", label_field="tone", progress=False)


@pytest.mark.parametrize("change", [lambda _weight: None, lambda weight: weight[:1]])
def test_an_initial_adapter_of_other_blocks(posterior: laplora.CalibratedPosterior, change: Any) -> None:
    """One of another shape would broadcast, and the evidence be that of another centre."""
    given = posterior.classifier
    weights = {name: weight.detach() for name, weight in lora_parameters(given.model).items()}
    first = next(iter(weights))
    changed = change(weights.pop(first))
    weights |= {} if changed is None else {first: changed}
    with pytest.raises(ConfigError, match=rf"initial_adapter .* {first} of shape"):
        laplora.fit(given, rows(20, 0), rows(12, 1), initial_adapter=weights, progress=False)


def test_a_base_that_was_changed_in_memory_is_not_the_one_that_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by an adapter that was merged into it: the artifact was of the base on disk, and recorded its answers."""
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))
    tiny_base("llama").save_pretrained(tmp_path / "base")
    letters("[CLS] $A").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        base.model.layers[0].mlp.down_proj.weight.mul_(-3)
    changed = fitted(add_lora(base, ["q_proj", "v_proj"], dtype=None))
    with pytest.raises(GoldenMismatchError):
        changed.save(tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
    with torch.no_grad():
        base.model.layers[0].mlp.down_proj.weight.div_(-3)
    assert changed.save(tmp_path / "artifact").is_dir()
    with pytest.raises(ConfigError, match="is no name for one"):
        changed.save(tmp_path / "my artifact")


def test_prompts_that_the_model_has_no_positions_for() -> None:
    """The longest were an IndexError, and on CUDA the process ended."""
    given = add_lora(tiny_architecture("gpt2"), ["c_attn"], dtype=None, fan_in_fan_out=True)
    for words, limit in (("w1", 65), ("w1 w2 w3", 63)):
        labels = {"no": f" {words}", "yes": " w4"}
        with pytest.raises(ModelError, match=f"GPT2LMHeadModel has positions for 64 tokens, max_tokens is {limit}"):
            laplora.Classifier(given, letters("[CLS] $A"), "{text} z", labels, max_tokens=limit)
        laplora.Classifier(given, letters("[CLS] $A"), "{text} z", labels, max_tokens=limit - 1)


def test_threads_that_ask_at_once_have_their_own_answers(posterior: laplora.CalibratedPosterior) -> None:
    """The hooks of one thread's pass noted those of the others: errors, or the Jacobians of other rows."""
    asked = [rows(4, seed) for seed in range(3)]

    def ask(inputs: Rows) -> list[dict[str, float]]:
        return [answer.probs for answer in posterior.predict(inputs, "laplace")]

    expected, interval = [ask(inputs) for inputs in asked], sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(ask, asked * 8))
    finally:
        sys.setswitchinterval(interval)
    assert found == expected * 8


def of_head(model: Any, labels: tuple[str, ...] = ("down", "up", "flat"), **options: Any) -> laplora.Classifier:
    return laplora.Classifier(model, letters("[CLS] $A [SEP]"), "{text}", labels, **{"max_tokens": 12} | options)


def test_the_priors_distances_take_the_head_with_its_bias() -> None:
    alone = head_alone("bert", dtype=torch.float32)
    getattr(alone, alone.base_model_prefix).requires_grad_(False)
    given = of_head(alone)
    blocks, layer = covered_blocks(given.model, given.readout), alone.classifier
    expected = layer.weight.double().square().sum() + layer.bias.double().square().sum()
    torch.testing.assert_close(squared_distances(block_weights(given), blocks, None), expected.detach()[None])
    adapted = of_head(adapted_classifier("roberta", dtype=torch.float32))
    blocks, weights = covered_blocks(adapted.model, adapted.readout), block_weights(adapted)
    start = {name: weight - 0.5 for name, weight in weights.items()}
    moved = squared_distances(weights, blocks, start).tolist()
    assert moved == pytest.approx([0.25 * block.wide * block.narrow for block in blocks], rel=1e-6)


def test_a_model_that_does_not_fit_its_labels_is_refused_by_name() -> None:
    model = adapted_classifier("bert", dtype=torch.float32)
    with pytest.raises(ModelError, match="the head has 3 classes, there are 2 labels"):
        of_head(model, ("down", "up"))
    with pytest.raises(ModelError, match="has positions for 64 tokens, max_tokens is 512: lower it"):
        of_head(model, max_tokens=512)
    with pytest.raises(ConfigError, match="is read at its head, not by label_tokens"):
        of_head(model, readout="label_tokens")
    keys = adapted_classifier("deberta", dtype=torch.float32, lora={"target_modules": ["key_proj"]})
    with pytest.raises(ModelError, match=f"choose adapter.targets among .*{TARGETS['deberta'][0]}"):
        of_head(keys)
