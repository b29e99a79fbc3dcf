"""A base over several devices: what a person may state, and models that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from emulated_devices import SECOND, emulated_devices
from tiny_models import add_lora, tiny_base

from benchmarks.harness.provenance import ARTIFACT
from laplora.errors import ConfigError, ModelError
from laplora.models.spread import Spread, check_spread, first_device, spread_of
from laplora.predictor import Predictor


def test_a_way_to_share_is_passed_on_with_its_limits_and_a_map_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = Spread.parsed("balanced", '{"0": "20GiB", "1": 1000}')
    assert spread == Spread.of("balanced", {0: "20GiB", 1: 1000})
    assert spread is not None
    assert spread.options == {"device_map": "balanced", "max_memory": {0: "20GiB", 1: 1000}}
    assert Spread.of(None) is None
    spread = Spread.parsed('{"model.embed_tokens": 1, "model.layers": "cuda:0"}', None)
    assert spread is not None
    assert spread.options == {"device_map": {"model.embed_tokens": 1, "model.layers": "cuda:0"}}
    assert hash(spread) == hash(Spread.of({"model.embed_tokens": "1", "model.layers": "cuda:0"}))
    # The first GPU with room.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert first_device(spread) == torch.device("cuda:1")
    assert first_device(Spread("auto")) == torch.device("cuda:0")
    assert first_device(Spread("auto", ((0, "0GiB"), (1, "8GiB")))) == torch.device("cuda:1")


@pytest.mark.parametrize("spread", [Spread("auto"), Spread("auto", ((0, "8GiB"),)), Spread((("", 0),))], ids=repr)
def test_without_its_gpu_no_base_is_fetched(spread: Spread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # as of NVML beside a broken driver
    with pytest.raises(ModelError, match="needs 'cuda:0', and torch finds 0 CUDA devices: check the driver"):
        Predictor.load(ARTIFACT, device=spread, progress=lambda stage: pytest.fail(stage) if "base" in stage else None)


@pytest.mark.parametrize(
    ("device_map", "max_memory", "said"),
    [
        ("automatic", None, "expected a map or one of"),
        ({}, None, "empty map"),
        (None, {0: "1GiB"}, "there is none: give both"),
        ({"": 0}, {0: "1GiB"}, "shares by itself"),
        ({"model": 0, "lm_head": "disk"}, None, "device_map puts lm_head on 'disk'"),
        ({"": "cpu"}, None, "device_map puts the model on 'cpu'"),
    ],
)
def test_what_cannot_be_is_refused(device_map: Any, max_memory: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Spread.of(device_map, max_memory)
    for text in ("{", '{"a": true}'):
        with pytest.raises(ConfigError, match="no JSON object of devices"):
            Spread.parsed(text, None)


def test_weights_on_the_disk_are_refused_by_the_module(tmp_path: Path) -> None:
    """As accelerate really puts them there: their places in the model are empty."""
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    model = tiny_base("llama")
    accelerate.dispatch_model(model, places | {"model.norm": "cpu", "lm_head": "cpu"}, offload_dir=tmp_path)
    assert model.model.layers[1].mlp.up_proj.weight.is_meta
    with pytest.raises(ModelError, match=r"from where it would be fetched in every pass"):
        check_spread(model)


def test_two_devices_without_hooks_are_refused() -> None:
    with emulated_devices():
        model = add_lora(tiny_base("llama"), ["q_proj"], dtype=None)
        check_spread(model)
        model.get_base_model().model.layers[1].to(SECOND)
        with pytest.raises(ModelError, match="nothing moves its activations between them"):
            check_spread(model)
        assert spread_of(model) is None
