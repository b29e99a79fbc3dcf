"""The layers that change a prompt's state least: angles against arccos, states against transformers', the choice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_architectures import tiny_architecture
from tiny_models import generator, tiny_task

from laplora.errors import ModelError, NonFiniteError
from laplora.models.decoder_layers import decoder_layers
from laplora.prompts.rows import Batch
from training.workspace.layer_similarity import angular_distances, most_similar_block, states_between_layers

LAYERS = 6


def batch() -> Batch:
    """Rows of 1 to 7 tokens, padded on the left."""
    return tiny_task(examples=8).batch()


def test_angles_are_those_of_arccos() -> None:
    states = torch.randn(9, LAYERS + 1, 12, generator=generator(0), dtype=torch.float64)
    for length in (1, 2, 5):
        found = angular_distances(states, length)
        assert len(found) == LAYERS - length + 1
        for first, distance in enumerate(found.tolist()):
            before, after = states[:, first], states[:, first + length]
            cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
            assert distance == pytest.approx(float(cosine.arccos().mean()) / math.pi, rel=1e-12)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3", "gemma3", "gpt2"])
def test_states_are_those_that_enter_each_layer(kind: str) -> None:
    """As transformers notes them: the last of its states has gone through the final norm, which ours has not."""
    model, rows = tiny_architecture(kind), batch()
    states = states_between_layers(model, rows)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in decoder_layers(model))
    with torch.no_grad():
        noted = model(**rows.inputs, output_hidden_states=True).hidden_states
    assert states.shape == (8, 3, 16)
    for place in range(2):
        torch.testing.assert_close(states[:, place].float(), noted[place][:, -1])
    decoder = getattr(model, model.base_model_prefix)
    norm = decoder.ln_f if kind == "gpt2" else getattr(decoder, "language_model", decoder).norm
    with torch.no_grad():
        torch.testing.assert_close(norm(states[:, 2].float()), noted[2][:, -1])


@pytest.mark.parametrize("block", [(0, 1), (2, 3), (4, 5)], ids=["the first", "in the middle", "the last"])
def test_the_block_that_changes_nothing_is_chosen(block: tuple[int, ...]) -> None:
    """Wherever it is: the one that ends with the last layer is a candidate too."""
    model = tiny_architecture("llama", num_hidden_layers=LAYERS)
    for number in block:
        layer: Any = decoder_layers(model)[number]
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    states = states_between_layers(model, batch())
    found = most_similar_block(states, 2)
    assert (found.layers, found.distance) == (block, 0.0)
    assert most_similar_block(states, 1).layers == block[:1]  # of two the first


def test_states_that_say_nothing_of_layers_are_refused() -> None:
    states = torch.randn(4, LAYERS + 1, 12, generator=generator(0), dtype=torch.float64)
    for value in (float("nan"), 0.0):
        states[1, 3] = value
        with pytest.raises(NonFiniteError, match="no layers can be chosen"):
            most_similar_block(states, 2)
    for kind, message in (("gemma3n_text", "do not pass on one state a token"), ("bart", "in no list")):
        with pytest.raises(ModelError, match=message):
            states_between_layers(tiny_architecture(kind), batch())
