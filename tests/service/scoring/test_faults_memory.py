"""Out of memory inside a real model: every row is answered, with the numbers it would have had, or says why not."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from device_rig import Rig, rig

from laplora.jacobians import contrasts as jacobians
from laplora.jacobians import reverse
from laplora.jacobians.contrasts import ReversePass
from laplora.predictor import Predictor
from service.errors import DeviceMemoryError
from service.scoring.admission import Amount

TEXTS = [f"The {noun} was {word}." for noun in ("film", "plot", "cast") for word in ("superb", "dull", "moving")]
#: Float32: sums in another order, as padding and the size of a batch change them.
TOLERANCE = 2e-4


class Shortage:
    """Lets passes of more than ``most_rows`` rows or ``most_tokens`` tokens a row run out of memory.

    Attributes:
        failed: rows of each pass that did.
        held: how many of the failed runs' tensors were still there when the next run began.
    """

    def __init__(self, most_rows: int, most_tokens: int = 10_000) -> None:
        self._limits = (most_rows, most_tokens)
        self._shape = (0, 0)
        self._tensors: list[weakref.ref[torch.Tensor]] = []
        self.failed: list[int] = []
        self.held: list[int] = []

    def begin(self, shape: Sequence[int]) -> None:
        """Note the shape of a run, (rows, tokens)."""
        self._shape = (shape[0], shape[1])
        self.held.append(sum(tensor() is not None for tensor in self._tensors))

    def allocate(self) -> None:
        """Fail if the present run is too large, with a tensor of it alive in this frame."""
        if self._shape[0] > self._limits[0] or self._shape[1] > self._limits[1]:
            part = torch.zeros(1000)
            self._tensors.append(weakref.ref(part))
            self.failed.append(self._shape[0])
            raise torch.OutOfMemoryError(f"CUDA out of memory. {part.numel()}")


@contextmanager
def in_forward(model: Any, shortage: Shortage, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    layer = model.get_base_model().model.layers[-1]
    with hooked(layer.register_forward_hook(lambda *_: shortage.allocate())):
        yield


@contextmanager
def in_written_out_reverse(model: Any, shortage: Shortage, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    original = reverse.attention_gradients

    def gradients(*arguments: Any, **options: Any) -> Any:
        shortage.allocate()
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(reverse, "attention_gradients", gradients)
        yield


@contextmanager
def in_backward(model: Any, shortage: Shortage, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In torch's automatic differentiation, which other architectures use."""

    def watch(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: shortage.allocate())

    layer = model.get_base_model().model.layers[-1].mlp
    with monkeypatch.context() as patch, hooked(layer.register_forward_hook(watch)):
        patch.setattr(jacobians, "reverse_pass", lambda model: ReversePass("automatic", "", None, "lm_head"))
        yield


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


Place = Callable[[Any, Shortage, pytest.MonkeyPatch], Any]
PLACES: tuple[Place, ...] = (in_forward, in_written_out_reverse, in_backward)


@contextmanager
def device_of(predictor: Predictor, shortage: Shortage) -> Iterator[Rig]:
    def begin(_module: Any, _arguments: Any, named: dict[str, Any]) -> None:
        shortage.begin(named["input_ids"].shape)

    decoder = predictor._members.model.get_base_model().model
    with (
        rig(predictor, token_budget=10_000, limits=Amount(100, 10_000, 0)) as device,
        hooked(decoder.register_forward_pre_hook(begin, with_kwargs=True)),
    ):
        yield device


def submit(device: Rig, predictor: Predictor, texts: Sequence[str]) -> Any:
    return device.submit(*(predictor.encode({"text": text}, truncate=True) for text in texts)).future


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_all_rows_are_answered_by_smaller_batches_with_the_same_numbers(
    sentiment_predictor: Predictor, monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    expected = sentiment_predictor.predict(
        [sentiment_predictor.encode({"text": text}, truncate=True) for text in TEXTS], "laplace"
    )
    shortage = Shortage(most_rows=2)
    with (
        device_of(sentiment_predictor, shortage) as device,
        place(sentiment_predictor._members.model, shortage, monkeypatch),
    ):
        answers = submit(device, sentiment_predictor, TEXTS).result()
    assert shortage.failed[0] == len(TEXTS)
    assert {r.outcome for r in device.reports} == {"ok", "out_of_memory"}
    assert max(r.rows for r in device.reports if r.outcome == "ok") == 2
    for answer, other in zip(answers, expected, strict=True):
        assert answer.probs == pytest.approx(other.probs, abs=TOLERANCE)
        assert answer.logit_variance == pytest.approx(other.logit_variance, rel=1e-3)
        assert (answer.label_index, answer.tokens) == (other.label_index, other.tokens)
    assert device.device.health.fault is None
    # What a run held when it failed is gone before the next one needs the memory.
    assert len(shortage.held) > len(shortage.failed)
    assert set(shortage.held) == {0}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_one_row_that_does_not_fit_says_so_and_the_others_are_answered(
    sentiment_predictor: Predictor, monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    long = "The film was superb, " + "and I say so after seeing it twice, " * 2 + "really."
    lengths = [len(sentiment_predictor.encode({"text": text}, truncate=True).token_ids) for text in (*TEXTS, long)]
    assert lengths[-1] > max(lengths[:-1])
    shortage = Shortage(most_rows=100, most_tokens=max(lengths[:-1]))
    with (
        device_of(sentiment_predictor, shortage) as device,
        place(sentiment_predictor._members.model, shortage, monkeypatch),
    ):
        blocked = device.device.call(lambda: None)
        futures = [submit(device, sentiment_predictor, [text]) for text in (*TEXTS[:4], long, *TEXTS[4:])]
        assert blocked.result() is None
        with pytest.raises(DeviceMemoryError) as refused:
            futures.pop(4).result()
        assert all(future.result() for future in futures)
    assert refused.value.field == "inputs.0"
    assert device.device.health.fault is None
