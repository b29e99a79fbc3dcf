"""When the contexts of labels share a prompt: where it was measured that the states are those of separate runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_architectures import tiny_architecture
from tiny_models import tiny_base, tiny_model, tiny_task

from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks
from laplora.readouts.contexts import context_states, context_tokens, shares_prompt
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.prefix_tree import PrefixTree, prefix_tree

TREE = prefix_tree(((10, 11), (12, 13, 14)))


KINDS = ["llama", "eager llama", "mistral", "qwen3", "phi", "gemma", "gemma3_text", "gpt2", "mixtral"]


@pytest.mark.parametrize("name", KINDS)
def test_kinds_whose_contexts_share_a_prompt(name: str) -> None:
    model = tiny_architecture(name) if " " not in name else tiny_base("llama", attn_implementation="eager")
    assert shares_prompt(model, 12)


def test_a_window_that_is_too_short_for_it_is_not_lost() -> None:
    model = tiny_base("mistral", sliding_window=8)
    assert shares_prompt(model, 8)
    assert not shares_prompt(model, 9)


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("tree", [TREE, prefix_tree(((10, 11, 12), (10, 13)))], ids=["two runs", "one run"])
def test_the_tokens_that_run_are_known_before(tree: PrefixTree, window: int | None) -> None:
    model, batch = tiny_base("mistral", sliding_window=window), tiny_task(examples=3).batch()
    with torch.no_grad():
        mask = context_states(model, tree, batch)[1]
    assert 3 * context_tokens(model, tree, batch.input_ids.shape[1]) == mask.numel()


def test_a_model_that_ignores_the_mask_does_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_base("llama")
    original = model.model.forward

    def forward(attention_mask: torch.Tensor, **inputs: Any) -> Any:
        flat = attention_mask if attention_mask.dim() == 2 else None
        return original(attention_mask=flat, **inputs)

    monkeypatch.setattr(model.model, "forward", forward)
    assert not shares_prompt(model, 12)
    batch = tiny_task(examples=3).batch()
    assert len(context_states(model, TREE, batch)[1]) == 3 * len(TREE.runs)


def test_a_model_in_training_is_measured_without_dropout_and_left_in_it() -> None:
    model = tiny_model("llama", dropout=0.5).train()
    assert shares_prompt(model, 12)
    assert all(module.training for module in model.modules())


def test_jacobians_may_be_the_first_thing_that_a_model_is_asked_for() -> None:
    """The tape of activations is on while it is measured: it sees one forward pass."""
    batch, readout = tiny_task(examples=3, classes=2).batch(), LabelSequences(((10, 11), (12, 13, 14)))
    one, other = tiny_model("llama", targets=["q_proj"]), tiny_model("llama", targets=["q_proj"])
    assert shares_prompt(other, 12)
    found, expected = (contrast_jacobians(m, batch, readout, covered_blocks(m, readout)) for m in (one, other))
    for mine, theirs in zip(found.blocks, expected.blocks, strict=True):
        assert mine.jacobian.abs().max() > 0
        assert torch.equal(mine.jacobian, theirs.jacobian)
