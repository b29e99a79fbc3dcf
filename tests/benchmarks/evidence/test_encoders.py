"""A trained sentence encoder learns from few texts, gives the same again for a seed, and answers for all classes."""

from __future__ import annotations

import pytest
import torch

from benchmarks.evidence import encoders
from benchmarks.evidence.encoders import ENCODERS

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

SPORT = ("goals", "the striker", "a football match", "the league")
WEATHER = ("rain", "a storm", "clouds over the hills", "the forecast")
PAIRS = list(zip(SPORT, WEATHER, strict=True))
TEXTS = [f"{start} {said}" for start in ("news of", "we saw") for pair in PAIRS for said in pair]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_learns_few_texts_and_gives_the_same_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "setfit":
        pytest.importorskip("setfit", reason="the peers are not installed: make peers")
    monkeypatch.setattr(encoders, "ITERATIONS", 1)
    labels = torch.tensor([0, 2] * (len(TEXTS) // 2))  # no text has label 1
    asked = ["the referee", "snow and wind"] * 9
    one, other, third = (ENCODERS[name](TEXTS, labels, 3, seed)(asked) for seed in (0, 0, 1))
    assert one.shape == (18, 3)
    assert one.dtype == torch.float64
    assert bool(one.isfinite().all())
    torch.testing.assert_close(one.exp().sum(1), torch.ones(18, dtype=torch.float64))
    torch.testing.assert_close(one, other)
    assert not torch.equal(one, third)
    assert one[:2].argmax(1).tolist() == [0, 2]
    assert bool((one[:, 1] < one[:, ::2].amin(1)).all())
