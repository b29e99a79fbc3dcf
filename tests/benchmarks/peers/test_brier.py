"""brier is measured through a backend that runs each prompt once; that changes no answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("brier", reason="the peers are not installed: make peers")

from benchmarks.peers.against_brier import RememberingBackend


class CountingBackend:
    """A backend of made-up numbers that are the same for the same prompt, and that counts prompts."""

    model_id, revision, num_layers = "made-up", None, 10

    def __init__(self) -> None:
        self.prompts = 0

    def _draw(self, prompt: str, shape: tuple[int, ...]) -> Any:
        return np.random.default_rng(list(prompt.encode())).normal(size=shape)

    def label_token_ids(self, labels: Sequence[str]) -> list[int]:
        return list(range(len(labels)))

    def label_logprobs(self, prompts: Sequence[str], token_ids: Sequence[int]) -> Any:
        self.prompts += len(prompts)
        return np.array([self._draw(p, (len(token_ids),)) for p in prompts]).reshape(len(prompts), len(token_ids))

    def hidden_states(self, prompts: Sequence[str], layers: Sequence[int]) -> Any:
        self.prompts += len(prompts)
        return np.stack([self._draw(p, (10, 4))[list(layers)] for p in prompts]).astype(np.float32)


def answers(backend: Any) -> list[list[float]]:
    """Return the probabilities of every level on ten states, after fits on sixty."""
    from brier import Choice, Decider

    question = Choice("good?", ["no", "yes"], name="q")
    states = [f"state {i}" for i in range(70)]
    labels = [("no", "yes")[i % 2] for i in range(60)]
    decider = Decider(backend)
    decider.fit_prior(states[:60], [question])
    decider.fit_temperature(states[:60], question, labels)
    decider.fit_head(states[:60], question, labels, layers=[2, 5])
    return [
        [d["q"].probs["yes"] for d in decider.decide_batch(states[60:], [question], level)]
        for level in ("raw", "L0", "L1", "L2")
    ]


def test_remembered_answers_are_the_backends() -> None:
    plain, wrapped = CountingBackend(), CountingBackend()
    assert answers(RememberingBackend(wrapped, [2, 5])) == answers(plain)
    # 70 states in two orders of the options, and 70 hidden states.
    assert wrapped.prompts == 210 < plain.prompts
