"""How the speed benchmark treats other methods fairly: their fastest attention, and adapters that differ."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers.subject import attentions, tiny_subject
from benchmarks.speed.parts import peers


def test_a_package_is_timed_with_the_fastest_attention_that_works_and_answers_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(peers.time, "perf_counter", lambda: now[0])
    names = ["slow", "broken", "another answer", "fast"]
    monkeypatch.setattr(peers, "attentions", lambda _model: {name: lambda name=name: name for name in names})

    def answer(attention: peers.Attention) -> torch.Tensor:
        if (name := attention()) == "broken":
            raise RuntimeError("no derivative")
        now[0] += 2.0 if name == "slow" else 1.0
        return torch.tensor([[2.0 if name == "another answer" else 1.0]])

    chosen, function = peers.fastest(tiny_subject(), answer)  # type: ignore[arg-type]
    assert chosen == "fast"
    assert function() == 1.0


def test_every_attention_gives_the_same_logits_and_is_undone() -> None:
    subject = tiny_subject(length=6)
    forward = peers.plain_forward(subject)
    before, outputs = subject.model.config._attn_implementation, []
    for attention in attentions(subject.model).values():
        with attention():
            outputs.append(forward())
    assert subject.model.config._attn_implementation == before
    for logits in outputs[1:]:
        assert torch.allclose(logits, outputs[0], atol=1e-6)  # a softmax in float32 in one of them
