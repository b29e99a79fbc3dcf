"""laplace-torch on a tiny model gives what is recorded and told, and packages are timed at their fastest."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.peers.__main__ import FOLDER
from benchmarks.peers.subject import attentions, tiny_subject
from benchmarks.speed.parts import peers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

RECORDED = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def peer(name: str, *packages: str) -> Any:
    """Return the module of a comparison, where its packages are installed."""
    for package in packages:
        pytest.importorskip(package, reason="the peers are not installed: make peers")
    return importlib.import_module(f"benchmarks.peers.{name}")


def differences(value: Any, recorded: Any, place: str = "") -> list[str]:
    """Return where a result is off the recorded one by a thousandth; what is rounding may be ten times as large."""
    if isinstance(recorded, dict):
        assert set(value) == set(recorded), place
        return [line for key in recorded for line in differences(value[key], recorded[key], f"{place}/{key}")]
    if isinstance(recorded, list):
        pairs = enumerate(zip(value, recorded, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{place}/{i}")]
    if not isinstance(recorded, float):
        same = value == recorded
    elif abs(recorded) < 1e-6:
        same = abs(value) <= 10 * abs(recorded) + 1e-13
    else:
        same = value == pytest.approx(recorded, rel=1e-3)
    return [] if same else [f"{place}: {value}, recorded {recorded}"]


def test_laplace_torch_gives_what_is_recorded() -> None:
    peer("against_laplace", "laplace", "curvlinops")
    with peer("laplace_torch_calls").quiet():
        tiny = peer("against_laplace").compare_tiny()
    assert differences(tiny, RECORDED["laplace"]["tiny"]) == []


def test_what_is_recorded_is_what_the_page_tells() -> None:
    """Agreement to rounding where the posterior is the same, and the ways in which the packages differ."""
    tiny = RECORDED["laplace"]["tiny"]
    # laplace-torch multiplies the GGN with a float32 identity.
    limits = {"kfac_reduce, alone": 1e-12, "joint_core, alone": 1e-6, "joint_core, padded": 1e-6}
    for pair, limit in limits.items():
        assert max(tiny[pair]["covariance"], tiny[pair]["evidence"]) < limit, pair
    assert 1.08 < tiny["kfac_reduce, padded"]["median_ratio"] < 1.3  # pads dilute the input factor there
    assert max(tiny["padding moves laplora"].values()) < 1e-12


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
    subject = tiny_subject()
    longest = max(
        len(row.token_ids) for row in subject.test
    )  # some attentions give NaN where a token sees only padding
    subject = replace(subject, test=tuple(row for row in subject.test if len(row.token_ids) == longest))
    forward = peers.plain_forward(subject)
    before, outputs = subject.model.config._attn_implementation, []
    for attention in attentions(subject.model).values():
        with attention():
            outputs.append(forward())
    assert subject.model.config._attn_implementation == before
    for logits in outputs[1:]:
        assert torch.allclose(logits, outputs[0], atol=1e-6)  # a softmax in float32 in one of them
