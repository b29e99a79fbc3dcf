"""Classification heads: logits as the model gives them, Jacobians as autograd does, the last-layer Laplace exact."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from dense_reference import kron
from tiny_architectures import tiny_architecture
from tiny_classifiers import (
    CLASSIFIERS,
    DECODERS,
    TARGETS,
    adapted_classifier,
    batch_of,
    classifier_base,
    head_alone,
    plain_logits,
    random_rows,
)
from tiny_models import tiny_base

from laplora.errors import ModelError
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks, reverse_pass
from laplora.linearised import directions_of
from laplora.models.classifier_head import check_ending, longest_input
from laplora.models.probe import check_adapted
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import STRUCTURES, fit_posterior
from laplora.prompts.rows import EncodedRow
from laplora.readouts.classification_head import ClassificationHead, check_labels, classification_head

#: transformers' rotary tables are float32 in a float64 model, and the two passes read them in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def parameter_jacobian(model: Any, block: Block, logits: torch.Tensor) -> torch.Tensor:
    """Return d logits / d block (classes, wide, narrow) by one autograd call a logit on the parameters themselves."""
    path, _, matrix = block.name.rpartition(".")
    module = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_submodule(path)
    if block.group != "head":
        weight = getattr(module, matrix)["default"].weight
        grads = [torch.autograd.grad(f, weight, retain_graph=True)[0] for f in logits]
        return torch.stack([g if block.group == "lora_B" else g.T for g in grads])
    parts = [p for p in (module.weight, module.bias) if p is not None]
    grads = [torch.autograd.grad(f, parts, retain_graph=True) for f in logits]
    return torch.stack([torch.cat([weight.T, *(b[None] for b in bias)]) for weight, *bias in grads])


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_logits_and_jacobians_are_autograds_row_by_row_without_padding(kind: str) -> None:
    model, rows = adapted_classifier(kind), random_rows()
    check_adapted(model)
    readout = classification_head(model)
    assert readout.side == ("left" if kind in DECODERS else "right")
    blocks = covered_blocks(model, readout)
    heads = [block for block in blocks if block.group == "head"]
    assert [block.name for block in heads] == [f"{path}.head" for path in readout.trained]
    assert heads[-1].narrow == 3
    assert heads[-1].wide == (16 if kind in DECODERS else 17)  # with a column for the bias
    assert_jacobians_are_autograds(model, rows, readout)
    assert reverse_pass(model, readout).kind == ("written_out" if kind in DECODERS else "automatic")
    if kind == "roberta":  # alone, with two trained linears
        readout = classification_head(head_alone(kind))
        assert readout.trained == ("classifier.dense", "classifier.out_proj")
        assert_jacobians_are_autograds(head_alone(kind), rows, readout)


def assert_jacobians_are_autograds(model: Any, rows: list[EncodedRow], readout: ClassificationHead) -> None:
    blocks = covered_blocks(model, readout)
    found = contrast_jacobians(model, batch_of(rows, readout.side), readout, blocks)
    model.requires_grad_(True)
    directions = directions_of("categorical", 3)
    for i, row in enumerate(rows):
        logits = plain_logits(model, row)
        torch.testing.assert_close(found.logits[i], logits.detach(), **CLOSE)
        for block, jacobian in zip(blocks, found.blocks, strict=True):
            expected = torch.einsum("kc,cwn->kwn", directions, parameter_jacobian(model, block, logits))
            # A token alone has nothing else to attend to: its query changes nothing, rounding apart.
            assert len(row.token_ids) == 1 or float(expected.abs().max()) > 0
            torch.testing.assert_close(jacobian.jacobian[i], expected, **CLOSE)


@pytest.mark.parametrize("kind", ["llama", "roberta", "modernbert_mean"])
def test_sums_over_tokens_are_those_of_real_tokens(kind: str) -> None:
    model, rows = adapted_classifier(kind), random_rows()
    readout = classification_head(model)
    blocks = covered_blocks(model, readout)
    together = contrast_jacobians(model, batch_of(rows, readout.side), readout, blocks)
    for i, row in enumerate(rows):
        alone = contrast_jacobians(model, batch_of([row], readout.side), readout, blocks)
        for one, other in zip(alone.blocks, together.blocks, strict=True):
            torch.testing.assert_close(other.mean_input[i], one.mean_input[0], **CLOSE)
            torch.testing.assert_close(other.summed_gradient[i], one.summed_gradient[0], **CLOSE)


#: Of ranks that leave nothing out.
EXACT = StructureSettings("joint_core", rank=1000, joint_rank=1000)


def one_pass(model: Any, readout: ClassificationHead, blocks: tuple[Block, ...]) -> Any:
    """Return a pass over the random rows in batches of three."""

    def run(_title: str, state: Any, add: Any) -> Any:
        rows = random_rows(12, classes=readout.class_count)
        for start in range(0, len(rows), 3):
            batch = batch_of(rows[start : start + 3], readout.side, readout.class_count)
            state = add(state, contrast_jacobians(model, batch, readout, blocks), batch.class_mask)
        return state

    return run


@pytest.mark.parametrize("kind", ["llama", "bert", "roberta", "deberta"])
def test_a_head_alone_is_the_dense_last_layer_laplace(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a backward pass: features, softmax curvature and one inverse are all there is to it."""
    model = head_alone(kind)
    model.requires_grad_(False)
    readout = classification_head(model)
    blocks = covered_blocks(model, readout)
    assert [block.group for block in blocks] == ["head"]
    monkeypatch.setattr(torch.autograd, "grad", lambda *_args, **_options: pytest.fail("a backward pass"))
    posterior = fit_posterior(EXACT, blocks, one_pass(model, readout, blocks))
    assert reverse_pass(model, readout).reason.startswith("a linear head alone")
    batch = batch_of(random_rows(12), readout.side)
    features = readout.scores(model, batch).hidden.double()
    if kind != "llama":
        features = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    rows = random_rows(12)
    probs = torch.stack([plain_logits(model, row) for row in rows]).softmax(-1)
    hessian = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    curvature = sum(
        kron(torch.outer(x, x), h) for x, h in zip(features, hessian, strict=True)
    )  # of the weights as (features, classes)
    covariance = torch.linalg.inv(curvature + 0.7 * torch.eye(len(curvature), dtype=torch.float64))
    directions = directions_of("categorical", 3)
    expected = torch.stack([kron(x[None], directions) for x in features])
    expected = expected @ covariance @ expected.mT
    jacobians = contrast_jacobians(model, batch, readout, blocks)
    found = posterior.covariance_of(jacobians, block_precisions(Prior("scalar", {"all": 0.7}), blocks))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_takes_the_heads_block(structure: str) -> None:
    model = adapted_classifier("bert")
    readout = classification_head(model)
    blocks = covered_blocks(model, readout)
    settings = StructureSettings(structure, rank=40, joint_rank=200)
    posterior = fit_posterior(settings, blocks, one_pass(model, readout, blocks))
    exact = fit_posterior(EXACT, blocks, one_pass(model, readout, blocks))
    jacobians = contrast_jacobians(model, batch_of(random_rows(), readout.side), readout, blocks)
    prior = block_precisions(Prior("group", {"lora_A": 2.0, "lora_B": 3.0, "head": 0.5}), blocks)
    found, best = (p.covariance_of(jacobians, prior).diagonal(dim1=1, dim2=2) for p in (posterior, exact))
    assert bool((found > 0).all())
    if structure == "joint_core":
        torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-8)
    else:  # curvature between blocks is left out, and the variances stay of the same order
        assert 0.2 < float((found / best).log().mean().exp()) < 5


def test_other_models_and_heads_are_refused_by_name() -> None:
    for other in (adapted_classifier("modernbert", lora={"modules_to_save": ["head"]}), head_alone("modernbert")):
        with pytest.raises(ModelError, match=r"head\.norm is a trained LayerNorm"):
            classification_head(other)
    with pytest.raises(ModelError, match=r"query_proj runs \d times .* choose adapter.targets among .*'value_proj'"):
        check_adapted(adapted_classifier("deberta", lora={"target_modules": ["query_proj"]}))
    with pytest.raises(ModelError, match="the head is trained whole"):
        classification_head(adapted_classifier("roberta", lora={"target_modules": ["out_proj"], "task_type": None}))
    with pytest.raises(ModelError, match="expected a model of AutoModelForSequenceClassification, got a Llama"):
        classification_head(tiny_base("llama"))
    for options in ({"classes": 1}, {"problem_type": "regression"}):
        with pytest.raises(ModelError, match="predicts numbers"):
            classification_head(head_alone("bert", **options))
    with pytest.raises(ModelError, match="only the head may be in modules_to_save"):
        classification_head(
            adapted_classifier("bert", lora={"modules_to_save": ["pooler"], "target_modules": ["query"]})
        )
    model = head_alone("roberta")
    model.classifier.out_proj.requires_grad_(False)
    assert classification_head(model).trained == ("classifier.dense", "classifier.out_proj")
    with pytest.raises(ModelError, match="the head has 3 classes, there are 4 labels"):
        check_labels(classification_head(model), 4)
    # Of a whole model that was fine-tuned elsewhere nothing says what to cover, so it is the last layer.
    assert classification_head(classifier_base("roberta")).trained == ("classifier.out_proj",)
    # A text that ends in the padding token was read elsewhere in training.
    ends = MagicMock(encode=lambda _text: [7, 0])
    with pytest.raises(ModelError, match="ends every text with token 0"):
        check_ending(adapted_classifier("llama"), ends)
    check_ending(adapted_classifier("bert"), ends)


def test_how_many_tokens_a_table_of_positions_has() -> None:
    assert longest_input(head_alone("bert")) == 64
    assert longest_input(head_alone("roberta")) == 63  # the first ones are for padding
    assert longest_input(head_alone("llama")) is None
    assert longest_input(tiny_architecture("gpt2")) == 64
    assert longest_input(tiny_architecture("opt")) == 64
    assert set(TARGETS) == set(CLASSIFIERS)
