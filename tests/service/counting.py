"""A predictor that remembers what it tokenised, and waits before it does where a test says so."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from serving import FakePredictor

from laplora.prompts.rows import EncodedRow


class CountingPredictor(FakePredictor):
    """Remembers what it tokenised; while ``gate`` is clear, tokenising waits."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = threading.Event()
        self.gate.set()
        self.encoded: list[str] = []

    def encode(self, inputs: Mapping[str, object], *, truncate: bool) -> EncodedRow:
        self.encoded.append(str(inputs.get("text")))
        self.gate.wait()
        return super().encode(inputs, truncate=truncate)
