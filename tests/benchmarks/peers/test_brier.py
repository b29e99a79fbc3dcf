"""brier's levels on made-up states: each is measured with the rows that it may use."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("brier", reason="the peers are not installed: make peers")

from brier.backends import hf

from benchmarks.peers.against_brier import brier_levels
from laplora.prompts.examples import Example
from training.data.section import Splits

LAYERS = 10


class MadeUpBackend:
    """Numbers that are the same for the same prompt; hidden states know the label, the label tokens do not."""

    model_id, revision, num_layers = "made-up", None, LAYERS

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take what the real backend takes."""

    def _draw(self, prompt: str, shape: tuple[int, ...]) -> Any:
        return np.random.default_rng(list(prompt.encode())).normal(size=shape)

    def label_token_ids(self, labels: Sequence[str]) -> list[int]:
        return list(range(len(labels)))

    def label_logprobs(self, prompts: Sequence[str], token_ids: Sequence[int]) -> Any:
        return np.array([self._draw(p, (len(token_ids),)) for p in prompts]).reshape(len(prompts), len(token_ids))

    def hidden_states(self, prompts: Sequence[str], layers: Sequence[int]) -> Any:
        states = [self._draw(p, (LAYERS, 4)) + 1.0 * ("good" in p.split("?")[0]) for p in prompts]
        return np.stack([state[list(layers)] for state in states]).astype(np.float32)


def rows(count: int, first: int) -> tuple[Example, ...]:
    return tuple(
        Example(str(i), {"text": f"{('bad', 'good')[i % 2]} {i}"}, i % 2, 2) for i in range(first, first + count)
    )


def test_every_level_is_measured_with_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "HFBackend", MadeUpBackend)
    task = SimpleNamespace(labels=("negative", "positive"))
    levels = brier_levels(Splits(task, rows(60, 0), rows(50, 60), rows(40, 110), {}), "nowhere")
    used = {name: level["labels_used"] for name, level in levels.items()}
    assert used == {"raw": 0, "L0": 0, "L1": 50, "L2, training rows": 60, "L2, all rows": 110}
    for level in levels.values():
        assert level["intervals"]["nll"][0] <= level["nll"] <= level["intervals"]["nll"][1]
    assert "temperature" in levels["L1"]
