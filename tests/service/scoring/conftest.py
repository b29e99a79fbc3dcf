"""A predictor that remembers what it tokenised, and waits before it does where a test says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
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
def counting() -> Iterator[Any]:
    counting = CountingPredictor()
    yield counting
    counting.gate.set()
