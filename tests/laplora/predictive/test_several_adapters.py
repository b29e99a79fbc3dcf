"""Adapters on one base, swapped in or side by side in one pass: each answers as it does alone, whatever is adapted."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_classifiers import adapted_classifier, batch_of, random_rows
from tiny_models import add_lora, generator, tiny_base, tiny_model, tiny_task

from laplora.errors import ArtifactCorruptError, ConfigError
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.models.adapters import save_adapter
from laplora.models.base import BaseSpec, load_base_model
from laplora.models.lora import lora_layers
from laplora.models.readout import label_logits, last_hidden
from laplora.predictive import several_adapters
from laplora.predictive.lora_weights import (
    Weights,
    adapter_linears,
    in_place,
    lora_parameters,
    read_weights,
    side_by_side,
)
from laplora.prompts.rows import Batch
from laplora.readouts.base import ReadOut
from laplora.readouts.classification_head import classification_head
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.label_tokens import LabelTokens

#: Rounding of the number format, through all layers.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}
SEQUENCES = LabelSequences(((10, 11), (12, 13, 14), (15,)))


def others(model: Any, count: int = 3) -> list[Weights]:
    """Return random adapters of the model's shapes."""
    draw = generator(7)
    return [
        {
            name: (p + 0.2 * torch.randn(p.shape, generator=draw).to(p)).detach()
            for name, p in lora_parameters(model).items()
        }
        for _ in range(count)
    ]


def assert_each_as_alone(model: Any, readout: ReadOut, batch: Batch) -> None:
    adapters, alone = [{}, *others(model)], []
    for weights in adapters:
        with torch.no_grad(), in_place(lora_parameters(model), weights):
            alone.append(readout.scores(model, batch).logits)
    want = torch.stack(alone).double()
    assert (want[0] - want[1]).abs().max() > 0.01
    tolerance = ROUNDING[next(model.parameters()).dtype]
    got = several_adapters.adapters_logits(model, readout, adapters, batch)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def rank_stabilised() -> Any:
    """Return a model whose layers have updates of other scales and ranks than the tiny models'."""
    patterns = {"rank_pattern": {"v_proj": 5}, "alpha_pattern": {"q_proj": 11}}
    return add_lora(tiny_base("llama"), ["q_proj", "v_proj", "lm_head"], use_rslora=True, **patterns)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny_model("llama", tied=True),
        lambda: tiny_model("phi"),
        lambda: tiny_model("phi3", dtype=torch.float32),
        lambda: tiny_model("llama", dtype=torch.bfloat16),
        rank_stabilised,
    ],
    ids=["tied", "phi", "phi3, float32", "bfloat16", "rank stabilised"],
)
def test_adapters_of_a_causal_model(make: Callable[[], Any]) -> None:
    model, task = make(), tiny_task()
    assert_each_as_alone(model, LabelTokens(tuple(task.label_ids)), task.batch())


def test_adapters_on_a_base_in_four_bits(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    tiny_base("llama", hidden=64).save_pretrained(tmp_path)
    spec, task = BaseSpec(str(tmp_path), None, "nf4", "float32"), tiny_task()
    base = load_base_model(str(tmp_path), spec, device=torch.device("cpu"), dequantize=False).model
    model = add_lora(base, ["q_proj", "v_proj", "lm_head"], dtype=None).requires_grad_(False).eval()
    adapted = lora_layers(model)["model.layers.0.self_attn.q_proj"]
    assert isinstance(adapted.get_base_layer(), bitsandbytes.nn.Linear4bit)
    assert_each_as_alone(model, LabelTokens(tuple(task.label_ids)), task.batch())


@pytest.mark.parametrize("kind", ["llama", "bert", "roberta", "deberta"])
def test_adapters_with_a_trained_head(kind: str) -> None:
    """The head's weights and biases are each adapter's own, and a row is padded on either side."""
    model = adapted_classifier(kind)
    readout = classification_head(model)
    assert any(name.endswith(".bias") for name in lora_parameters(model)) == (kind != "llama")
    assert_each_as_alone(model, readout, batch_of(random_rows(), readout.side))


@pytest.mark.parametrize("window", [None, 8], ids=["one prompt", "copies of the prompt"])
def test_adapters_whose_labels_are_texts(window: int | None) -> None:
    model = tiny_model("mistral", targets=["q_proj", "v_proj"], sliding_window=window)
    assert_each_as_alone(model, SEQUENCES, tiny_task().batch())


@pytest.mark.parametrize("tokens", [1, 100, 10**6])
def test_a_bound_on_tokens_splits_the_adapters(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Also of adapters that replace some of the weights alone."""
    model, task = tiny_model("llama"), tiny_task()
    readout, batch, rows = LabelTokens(tuple(task.label_ids)), task.batch(), []
    parts = [{name: w for name, w in one.items() if name.endswith("lora_A")} for one in others(model, 2)]
    adapters = [{}, *others(model), *parts]
    want = [several_adapters.adapters_logits(model, readout, [one], batch) for one in adapters]
    with model.get_base_model().model.register_forward_pre_hook(
        lambda _module, _inputs, named: rows.append(len(named["input_ids"])), with_kwargs=True
    ):
        monkeypatch.setattr(several_adapters, "SIDE_BY_SIDE_TOKENS", tokens)
        found = several_adapters.adapters_logits(model, readout, adapters, batch)
    torch.testing.assert_close(found, torch.cat(want), rtol=1e-9, atol=1e-9)
    assert sum(rows) == 6 * len(batch)
    assert max(rows) == len(batch) * max(1, min(6, tokens // batch.input_ids.numel()))


Ways = Callable[[Any, Weights], AbstractContextManager[None]]
ways = pytest.mark.parametrize(
    "way",
    [
        lambda model, weights: in_place(lora_parameters(model), weights),
        lambda model, weights: side_by_side(lora_parameters(model), adapter_linears(model), [{}, weights]),
    ],
    ids=["in place", "side by side"],
)


@ways
def test_the_model_is_as_before_after_an_error(way: Ways) -> None:
    model, task = tiny_model("llama"), tiny_task()
    before = {name: p.detach().clone() for name, p in lora_parameters(model).items()}
    with pytest.raises(KeyboardInterrupt), way(model, others(model)[0]):
        raise KeyboardInterrupt
    assert all(torch.equal(before[name], p) for name, p in lora_parameters(model).items())
    want, found = (
        LabelTokens(tuple(task.label_ids)).scores(one, task.batch()).logits for one in (tiny_model("llama"), model)
    )
    assert torch.equal(found, want)
    # Weights that do not fit are refused.
    name, weight = next(iter(others(model)[0].items()))
    for wrong in ({name: weight.T}, {name: weight.half()}, {"model.nowhere.lora_A": weight}):
        with pytest.raises(ConfigError, match="do not fit"), way(model, wrong):
            pytest.fail("must not be entered")


def logits(model: Any) -> torch.Tensor:
    task = tiny_task()
    with torch.no_grad():
        return label_logits(model, last_hidden(model, task.batch()), task.label_ids)


def test_a_member_in_place_is_that_adapter(tmp_path: Path) -> None:
    """Bit for bit, in logits and in Jacobians; and the model's own weights are back afterwards, bit for bit."""
    model, other = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        for parameter in lora_parameters(other).values():
            parameter.mul_(-0.5)
    save_adapter(other, tmp_path / "m" / "adapter")
    weights = read_weights(model, tmp_path / "m" / "adapter")
    before, task = logits(model), tiny_task()
    blocks = find_blocks(model, len(task.label_ids))
    assert list(lora_parameters(model)) == [block.name for block in blocks]
    with in_place(lora_parameters(model), weights):
        assert torch.equal(logits(model), logits(other))
        got, want = (contrast_jacobians(m, task.batch(), task.label_ids, blocks).blocks for m in (model, other))
        assert all(torch.equal(one.jacobian, two.jacobian) for one, two in zip(got, want, strict=True))
    assert not torch.equal(before, logits(other))
    assert torch.equal(before, logits(model))


def test_a_member_of_another_adapter_is_refused(tmp_path: Path) -> None:
    model, folder = tiny_model("llama"), tmp_path / "m" / "adapter"
    with pytest.raises(ArtifactCorruptError, match=r"m/adapter cannot be read: FileNotFoundError"):
        read_weights(model, folder)
    save_adapter(model, folder)
    config, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    good = json.loads(config.read_text())
    config.write_text(json.dumps(good | {"lora_alpha": 99}))
    with pytest.raises(ArtifactCorruptError, match="has another lora_alpha"):
        read_weights(model, folder)
    config.write_text(json.dumps(good))
    tensors = load_file(file)
    key = next(iter(tensors))
    for change, message in (
        ({key: tensors[key] * torch.nan}, "holds NaN or infinity"),
        ({key: tensors[key][:, :-1].contiguous()}, "should be"),
        ({"surplus": tensors[key].clone()}, "not expected"),
    ):
        save_file(tensors | change, file)
        with pytest.raises(ArtifactCorruptError, match=message):
            read_weights(model, folder)
    file.write_bytes(b"\x00" * 7)
    with pytest.raises(ArtifactCorruptError, match=r"cannot be read: SafetensorError"):
        read_weights(model, folder)
