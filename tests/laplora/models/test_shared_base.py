"""Several artifacts on one base in memory: each says what it says alone, and the weights are there once."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tiny_runs import FinishedRun

from laplora.artifact.folder import read_artifact
from laplora.errors import ModelError
from laplora.models.base import load_base_model, locate_base
from laplora.models.held_weights import packed_linears, tensor_bytes
from laplora.models.lora import lora_layers
from laplora.models.shared_base import SharedBases, least_bytes
from laplora.predictor import Predictor

TEXTS = ("The film was superb.", "The plot was dull, and I say so after seeing it twice.", "Nothing.")


def answers(predictor: Predictor) -> list[Any]:
    rows = [predictor.encode({"text": text}, truncate=True) for text in TEXTS]
    return predictor.predict(rows, "laplace", also=predictor.predictives)


@pytest.fixture(scope="module")
def bases() -> SharedBases:
    return SharedBases()


@pytest.fixture(scope="module")
def pair(bases: SharedBases, sentiment_run: FinishedRun, mixture_run: FinishedRun) -> tuple[Predictor, Predictor]:
    one, other = (Predictor.load(run.artifact, device="cpu", bases=bases) for run in (sentiment_run, mixture_run))
    return one, other


def test_each_says_what_it_says_alone(
    pair: tuple[Predictor, Predictor], sentiment_predictor: Predictor, mixture_predictor: Predictor
) -> None:
    """The same numbers to the last bit: the same modules' arithmetic on the same tensors. In turn, in both orders."""
    one, other = pair
    for _ in range(2):
        assert answers(one) == answers(sentiment_predictor)
        assert answers(other) == answers(mixture_predictor)
    assert answers(one) == answers(sentiment_predictor)
    assert answers(one)[0].probs != answers(other)[0].probs


def test_another_base_that_does_not_fit_beside_is_refused_before_it_loads(
    sentiment_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_artifact(sentiment_run.artifact).manifest
    location, cpu = locate_base(manifest.base), torch.device("cpu")
    other = replace(manifest.base, dtype="bfloat16" if manifest.base.dtype == "float32" else "float32")
    get = partial(SharedBases().get, weights_hash=manifest.base_weights_hash, device=cpu)
    plain = replace(manifest.base, quantization="none", dtype="float32")
    model = load_base_model(location, plain, device=cpu).model
    count = sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())
    assert least_bytes(location, plain) == 4 * count == 2 * least_bytes(location, replace(plain, dtype="bfloat16"))
    assert least_bytes(location, replace(plain, quantization="nf4")) == count // 2
    least = least_bytes(location, other)
    monkeypatch.setattr("laplora.models.shared_base.free_bytes", lambda device: least - 1)
    kept = get(location, manifest.base)  # the first one is let in: it is what the memory is for
    assert get(location, manifest.base) is kept
    with pytest.raises(ModelError, match=r"GiB of cpu are free beside the base that is loaded"):
        get(location, other)
    monkeypatch.setattr("laplora.models.shared_base.free_bytes", lambda device: least)
    assert get(location, other) is not kept


def test_weights_are_in_memory_once_and_the_base_stays_bare(pair: tuple[Predictor, Predictor]) -> None:
    """An artifact's own bytes are the tensors beside the base, a storage once."""
    one, other = pair
    assert one.base is other.base
    for predictor in (one, other):
        attached = lora_layers(predictor._adapted.model)
        for name, layer in attached.items():
            assert layer.base_layer.weight is one.base.model.get_submodule(name).weight
    assert not any("lora" in name for name, _ in one.base.model.named_modules())
    assert not any(m._forward_hooks for m in one.base.model.modules())
    lora, base = (sum(p.nbytes for p in ps) for ps in (one._adapted.parameters.values(), one.base.model.parameters()))
    assert lora < lora + tensor_bytes(one._adapted.posterior) <= one.own_bytes < base
    whole = torch.zeros(10, dtype=torch.float64)
    assert tensor_bytes(whole, {"a": (whole[:3], [whole.view(2, 5)])}, "text", None, 3) == 80


def test_base_goes_with_its_last_predictor(sentiment_run: FinishedRun, mixture_run: FinishedRun) -> None:
    bases, loads = SharedBases(), []
    one = Predictor.load(sentiment_run.artifact, device="cpu", bases=bases, progress=loads.append)
    other = Predictor.load(mixture_run.artifact, device="cpu", bases=bases, progress=loads.append)
    assert loads.count("loading base model") == 1
    base = weakref.ref(other.base)
    del one
    gc.collect()
    assert base() is not None
    answers(other)
    del other
    gc.collect()
    assert base() is None


def test_packed_weights_are_shared_too(
    choices_run: FinishedRun, bases: SharedBases, pair: tuple[Predictor, Predictor]
) -> None:
    one, other = (Predictor.load(choices_run.artifact, device="cpu", bases=bases, dequantize=False) for _ in range(2))
    assert one.base is not pair[0].base  # of another format
    packed = packed_linears(one.base.model)
    assert packed
    for name, module in packed.items():
        for predictor in (one, other):
            mine = predictor._adapted.model.get_base_model().get_submodule(name)
            mine = getattr(mine, "base_layer", mine)
            assert mine is not module
            assert mine.weight is module.weight
            assert mine.weight.quant_state is module.weight.quant_state
    inputs = {"question": "Is a superb film good?", "choices": ["good", "bad"]}
    answered = [p.predict([p.encode(inputs, truncate=True)])[0] for p in (one, other)]
    assert answered[0] == answered[1]
