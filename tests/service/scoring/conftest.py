"""A device without an application, and a predictor that remembers what it tokenised."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from device_rig import Rig, rig
from serving import FakePredictor

from laplora.prompts.rows import EncodedRow


class CountingPredictor(FakePredictor):
    """Remembers what it tokenised; while ``gate`` is clear, tokenising waits."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.encoded: list[str] = []

    def encode(self, inputs: Mapping[str, object], *, truncate: bool) -> EncodedRow:
        self.encoded.append(str(inputs.get("text")))
        self.gate.wait()
        return super().encode(inputs, truncate=truncate)


@pytest.fixture
def device() -> Iterator[Rig]:
    """A queue and a device with its real thread, in front of a predictor that computes nothing."""
    with rig() as device:
        yield device


@pytest.fixture
def counting() -> Iterator[Any]:
    counting = CountingPredictor()
    yield counting
    counting.gate.set()
