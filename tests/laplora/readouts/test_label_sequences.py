"""Label sequences against one run a label without batch or padding, and their Jacobians against autograd; float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_architectures import tiny_architecture
from tiny_models import ARCHITECTURES, TARGETS, Architecture, tiny_base, tiny_model, tiny_task

import laplora.models.readout
import laplora.readouts.contexts
from laplora.errors import ModelError
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks
from laplora.linearised import contrasts
from laplora.models.lora import lora_layers
from laplora.prompts.rows import Batch
from laplora.readouts.contexts import context_states, context_tokens, shares_prompt
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.label_tokens import LabelTokens
from laplora.readouts.prefix_tree import PrefixTree, prefix_tree

# Two layers in float64 on both sides, summed in another order.
EXACT = {"rtol": 1e-10, "atol": 1e-12}
#: One, two and three tokens; two share their start, one is the start of another, one is read in no shared context.
LABELS = ((10,), (11, 12), (11, 12, 15), (13, 9, 14))


def model_of(architecture: Architecture) -> Any:
    targets = TARGETS.get(architecture, ["q_proj", "v_proj"])
    return tiny_model(architecture, targets=[target for target in targets if target != "lm_head"])


def batch_of(classes: int, examples: int = 6) -> Batch:
    """Return rows of different lengths, one of a single token, the fifth without the last class."""
    return tiny_task(examples=examples, classes=classes).batch()


def prompts(batch: Batch) -> list[torch.Tensor]:
    return [ids[mask.bool()] for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]


def log_probability(model: Any, prompt: torch.Tensor, label: tuple[int, ...]) -> torch.Tensor:
    ids = torch.cat([prompt, torch.tensor(label)])[None]
    log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
    return log_probs[len(prompt) - 1 : -1].gather(1, torch.tensor(label)[:, None]).sum()


@pytest.fixture(params=[True, False], ids=["one prompt", "runs"])
def sharing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the contexts share a prompt. The vocabulary of 64 comes in four parts, the last one short."""
    monkeypatch.setattr(laplora.models.readout, "_VOCABULARY_CHUNK", 20)
    monkeypatch.setattr(laplora.readouts.contexts, "shares_prompt", lambda _model, _tokens: request.param)
    return bool(request.param)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mistral", "qwen2"])
def test_logits_are_those_of_one_run_a_label(architecture: Architecture, normalised: bool, sharing: bool) -> None:
    model, batch = model_of(architecture), batch_of(len(LABELS))
    with torch.no_grad():
        scores = LabelSequences(LABELS, normalised).scores(model, batch)
        expected = torch.stack(
            [torch.stack([log_probability(model, p, label) for label in LABELS]) for p in prompts(batch)]
        )
    assert len(scores.attention_mask) == len(batch) * (1 if sharing else 2)
    torch.testing.assert_close(scores.hidden, expected, **EXACT)
    lengths = torch.tensor([1.0, 2, 3, 3]) if normalised else torch.ones(4)
    torch.testing.assert_close(scores.logits, expected / lengths, **EXACT)


@pytest.mark.parametrize("labels", [LABELS, ((10,), (11,)), ((5, 6), (7, 8)), ((5, 6, 7), (5, 6, 8), (9,))])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("sharing")
def test_jacobians_are_those_of_autograd(architecture: Architecture, labels: tuple[tuple[int, ...], ...]) -> None:
    """Runs of one row and rows of one batch are padded on both sides; the reference sees neither."""
    model, readout = model_of(architecture), LabelSequences(labels)
    batch = batch_of(len(labels))
    blocks = covered_blocks(model, readout)
    found = contrast_jacobians(model, batch, readout, blocks)
    basis = contrasts(len(labels))
    matrices = [
        getattr(layer, side)["default"].weight for layer in lora_layers(model).values() for side in ("lora_A", "lora_B")
    ]
    for row, prompt in enumerate(prompts(batch)):
        logits = torch.stack([log_probability(model, prompt, label) / len(label) for label in labels])
        for direction in range(len(labels) - 1):
            gradients = torch.autograd.grad(basis[:, direction] @ logits, matrices, retain_graph=True)
            for block, part, gradient in zip(blocks, found.blocks, gradients, strict=True):
                expected = gradient.mT if block.group == "lora_A" else gradient
                torch.testing.assert_close(part.jacobian[row, direction], expected, **EXACT)


def test_labels_of_one_token_are_label_tokens_but_for_a_shift() -> None:
    """One run a row: they cost what label tokens cost."""
    model, batch = model_of("llama"), batch_of(3)
    tokens, sequences = LabelTokens((10, 11, 20)), LabelSequences(((10,), (11,), (20,)))
    one, other = (readout.scores(model, batch) for readout in (tokens, sequences))
    torch.testing.assert_close(one.logits @ contrasts(3), other.logits @ contrasts(3), **EXACT)
    assert other.attention_mask.shape == batch.attention_mask.shape
    mass = sequences.label_mass(model, other.hidden, batch.class_mask).float()
    torch.testing.assert_close(mass, tokens.label_mass(model, one.hidden, batch.class_mask), rtol=1e-5, atol=1e-7)


def test_the_label_mass_counts_a_text_once() -> None:
    """A label that begins with a possible one adds nothing; where that one is impossible it counts."""
    readout = LabelSequences(((1,), (2, 3), (2,), (1, 4)))
    log_probs = torch.tensor([0.1, 0.2, 0.3, 0.05], dtype=torch.float64).log().expand(3, -1)
    possible = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]]).bool()
    mass = readout.label_mass(None, log_probs, possible)
    torch.testing.assert_close(mass, torch.tensor([0.4, 0.3, 0.25], dtype=torch.float64))


def test_training_reaches_the_adapter_as_autograd_does() -> None:
    """The gradient through the normaliser is computed in the forward pass: it must be that of a loss."""
    model, batch, readout = model_of("llama"), batch_of(4, examples=3), LabelSequences(LABELS)
    weight = next(p for name, p in model.named_parameters() if "q_proj.lora_A" in name)
    targets = torch.tensor([0, 2, 3])
    loss = torch.nn.functional.cross_entropy(readout.scores(model, batch).logits, targets)
    (found,) = torch.autograd.grad(loss, weight)
    logits = torch.stack(
        [torch.stack([log_probability(model, p, label) / len(label) for label in LABELS]) for p in prompts(batch)]
    )
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), weight)
    torch.testing.assert_close(found, expected, **EXACT)


def test_an_adapted_head_is_refused() -> None:
    model, readout = tiny_model("llama"), LabelSequences(LABELS)
    with pytest.raises(ModelError, match="lm_head is adapted, and label sequences read its whole vocabulary"):
        readout.scores(model, batch_of(4))
    with model.disable_adapter():
        readout.scores(model, batch_of(4))


TREE = prefix_tree(((10, 11), (12, 13, 14)))

KINDS = ["llama", "eager llama", "mistral", "qwen3", "phi", "gemma", "gemma3_text", "gpt2", "mixtral"]


@pytest.mark.parametrize("name", KINDS)
def test_kinds_whose_contexts_share_a_prompt(name: str) -> None:
    model = tiny_architecture(name) if " " not in name else tiny_base("llama", attn_implementation="eager")
    assert shares_prompt(model, 12)


def test_a_short_window_is_not_lost_and_a_model_in_training_is_left_in_it() -> None:
    model = tiny_base("mistral", sliding_window=8)
    assert (shares_prompt(model, 8), shares_prompt(model, 9)) == (True, False)
    model = tiny_model("llama", dropout=0.5).train()
    assert shares_prompt(model, 12), "measured without dropout"
    assert all(module.training for module in model.modules())


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


def test_jacobians_may_be_the_first_thing_that_a_model_is_asked_for() -> None:
    """The tape of activations is on while it is measured: it sees one forward pass."""
    batch, readout = tiny_task(examples=3, classes=2).batch(), LabelSequences(((10, 11), (12, 13, 14)))
    one, other = tiny_model("llama", targets=["q_proj"]), tiny_model("llama", targets=["q_proj"])
    assert shares_prompt(other, 12)
    found, expected = (contrast_jacobians(m, batch, readout, covered_blocks(m, readout)) for m in (one, other))
    for mine, theirs in zip(found.blocks, expected.blocks, strict=True):
        assert mine.jacobian.abs().max() > 0
        assert torch.equal(mine.jacobian, theirs.jacobian)
