"""Out of memory inside a real model: every row is answered, with the numbers it would have had, or says why not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from device_rig import Rig, rig

from laplora.jacobians import contrasts as jacobians
from laplora.jacobians import layer_reverse
from laplora.jacobians.contrasts import ReversePass
from laplora.predictor import Predictor
from service.errors import DeviceMemoryError
from service.scoring.admission import Amount
from service.threads import frames_of

TEXTS = [f"The {noun} was {word}." for noun in ("film", "plot", "cast") for word in ("superb", "dull", "moving")]
LONG = "The film was superb, " + "and I say so after seeing it twice, " * 2 + "really."
#: Float32: sums in another order, as padding and the size of a batch change them.
TOLERANCE = 2e-4


class Shortage:
    """Lets passes of more than ``most_rows`` rows or ``most_tokens`` tokens a row run out of memory, or fail otherwise.

    Attributes:
        failed: rows of each pass that did.
        held: how many of the failed runs' tensors were still there when the next run began.
    """

    def __init__(
        self, *, most_rows: int = 100, most_tokens: int = 10_000, error: type[Exception] = torch.OutOfMemoryError
    ) -> None:
        self._limits, self._shape, self._error = (most_rows, most_tokens), (0, 0), error
        self._tensors: list[weakref.ref[torch.Tensor]] = []
        self.failed: list[int] = []
        self.held: list[int] = []

    def begin(self, _module: Any, _arguments: Any, named: dict[str, Any]) -> None:
        self._shape = named["input_ids"].shape
        self.held.append(sum(tensor() is not None for tensor in self._tensors))

    def allocate(self) -> None:
        """Fail if the present run is too large, with a tensor of it alive in this frame."""
        if any(size > limit for size, limit in zip(self._shape, self._limits, strict=True)):
            part = torch.zeros(1000)
            self._tensors.append(weakref.ref(part))
            self.failed.append(self._shape[0])
            raise self._error(f"CUDA out of memory. {part.numel()}")


def in_forward(layer: Any, shortage: Shortage, monkeypatch: pytest.MonkeyPatch) -> Any:
    return layer.register_forward_hook(lambda *_: shortage.allocate())


def in_written_out_reverse(layer: Any, shortage: Shortage, monkeypatch: pytest.MonkeyPatch) -> Any:
    original = layer_reverse.attention_gradients

    def gradients(*arguments: Any, **options: Any) -> Any:
        shortage.allocate()
        return original(*arguments, **options)

    monkeypatch.setattr(layer_reverse, "attention_gradients", gradients)


def in_backward(layer: Any, shortage: Shortage, monkeypatch: pytest.MonkeyPatch) -> Any:
    """In torch's automatic differentiation, which other architectures use."""

    def watch(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: shortage.allocate())

    monkeypatch.setattr(jacobians, "reverse_pass", lambda *_: ReversePass("automatic", "", None))
    return layer.mlp.register_forward_hook(watch)


Place = Callable[[Any, Shortage, pytest.MonkeyPatch], Any]


@contextmanager
def short_of_memory(predictor: Predictor, place: Place, shortage: Shortage) -> Iterator[Rig]:
    """Yield a device that runs out of memory at this place."""
    decoder: Any = predictor._adapted.model.get_base_model().model  # type: ignore[operator, union-attr]
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for handle in (
            decoder.register_forward_pre_hook(shortage.begin, with_kwargs=True),
            place(decoder.layers[-1], shortage, patch),
        ):
            if handle is not None:
                stack.callback(handle.remove)
        device = stack.enter_context(rig(predictor, token_budget=10_000, limits=Amount(100, 10_000, 0)))
        yield device
        assert device.device.health.fault is None


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """Python's collector of garbage is off: only what nothing refers to goes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def encoded(predictor: Predictor, texts: Sequence[str]) -> list[Any]:
    return [predictor.encode({"text": text}, truncate=True) for text in texts]


@pytest.mark.parametrize("place", [in_forward, in_written_out_reverse, in_backward])
def test_rows_are_answered_by_smaller_batches_with_the_same_numbers_and_one_that_does_not_fit_says_so(
    sentiment_predictor: Predictor, place: Place
) -> None:
    *rows, long = encoded(sentiment_predictor, [*TEXTS, LONG])
    expected = sentiment_predictor.predict(rows, "laplace")
    shortage = Shortage(most_rows=2, most_tokens=max(len(row.token_ids) for row in rows))
    with short_of_memory(sentiment_predictor, place, shortage) as device:
        together, too_long = device.submit(*rows), device.submit(long)
        answers = together.future.result()
        with pytest.raises(DeviceMemoryError) as refused:
            too_long.future.result()
        assert device.submit(rows[0]).future.result()
    assert refused.value.field == "inputs.0"
    assert shortage.failed[0] >= len(TEXTS)
    assert shortage.failed.count(1) == 1, "of single rows that one alone does not fit"
    assert {r.outcome for r in device.reports} == {"ok", "out_of_memory"}
    assert max(r.rows for r in device.reports if r.outcome == "ok") == 2
    for answer, other in zip(answers, expected, strict=True):
        assert answer.probs == pytest.approx(other.probs, abs=TOLERANCE)
        assert answer.logit_variance == pytest.approx(other.logit_variance, rel=1e-3)
        assert (answer.label_index, answer.tokens) == (other.label_index, other.tokens)
    # What a run held when it failed is gone before the next one needs the memory.
    assert len(shortage.held) > len(shortage.failed)
    assert set(shortage.held) == {0}


def test_what_a_row_held_when_it_failed_for_any_other_reason_is_gone(sentiment_predictor: Predictor) -> None:
    (row,) = encoded(sentiment_predictor, TEXTS[:1])
    shortage = Shortage(most_rows=0, error=KeyError)
    with short_of_memory(sentiment_predictor, in_forward, shortage) as device:
        failed = device.submit(row)
        with pytest.raises(KeyError) as raised:
            failed.future.result()
        call = device.device.call(lambda: sentiment_predictor.predict([row], "map"))
        with pytest.raises(KeyError):
            call.result()
        device.submit(row).future.exception()
    assert shortage.failed == [1, 1, 1]
    assert set(shortage.held) == {0}
    # The log has its frames still, those of the device's thread first.
    lines = frames_of(raised.value)
    assert [any(name in line for line in lines) for name in ("device.py", "allocate", "test_what")] == [True] * 3
