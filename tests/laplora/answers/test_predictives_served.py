"""Every predictive of an artifact, served; tolerances as in ``plain_model``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_model import FLOAT32, SENTIMENT_INPUTS, distance, encode

from laplora.decisions.thresholds import REVIEW_FLAGS
from laplora.errors import ConfigError
from laplora.predictive import batch_outputs
from laplora.predictor import Predictor

NAMES = ("map", "temperature", "conditioned", "laplace", "pooled")
#: Those with a spread.
SPREAD = {"conditioned", "laplace", "pooled"}


def test_what_needs_no_further_pass_comes_along(mixture_predictor: Predictor) -> None:
    rows = encode(mixture_predictor, SENTIMENT_INPUTS[:2])

    def beside(name: str, *also: str) -> set[str]:
        (first, _) = mixture_predictor.predict(rows, name, also=also)
        assert first.calibrated_probs.keys() == first.calibrated_scores.keys()
        assert (first.logit_variance is not None) == (name in SPREAD or "laplace" in also)
        return set(first.calibrated_probs)

    forward = {"temperature", "conditioned", "pooled"}
    assert beside("map") == forward
    assert beside("temperature") == {"conditioned", "pooled"}
    assert beside("laplace") == forward
    assert beside("map", "laplace") == {*forward, "laplace"}
    assert beside("laplace", *NAMES) == {*NAMES} - {"map", "laplace"}


def test_each_predictive_has_its_own_pass_sets_and_uncertainty_and_comes_along_as_it_would_be_answered(
    mixture_predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, rows = mixture_predictor.artifact.manifest, encode(mixture_predictor, SENTIMENT_INPUTS)
    together, seen = mixture_predictor.predict(rows, "map", also=NAMES), list[Any]()
    original = batch_outputs.contrast_jacobians
    monkeypatch.setattr(batch_outputs, "contrast_jacobians", lambda *a, **o: seen.append(a) or original(*a, **o))
    for name in NAMES:
        spread = name in SPREAD
        threshold = manifest.predictives[name].conformal
        answers = mixture_predictor.predict(rows, name)
        assert len(seen) == (name == "laplace")  # one pass with Jacobians, or none
        seen.clear()
        for answer, one in zip(answers, together, strict=True):
            if name != "map":
                assert distance(answer.arrays.probs, one.arrays.calibrated_probs[name]) < FLOAT32
                assert answer.score == pytest.approx(one.calibrated_scores[name], abs=1e-4)
            assert answer.map_probs == pytest.approx(one.map_probs, abs=FLOAT32)
            assert (answer.logit_variance is None) == (not spread)
            held = {label for label, p in answer.probs.items() if 1 - p <= threshold or "unfamiliar" in answer.flags}
            assert {*answer.prediction_set} == held | {answer.label}
            total = float(torch.special.entr(torch.tensor(answer.arrays.probs)).sum())
            assert answer.total == pytest.approx(total, abs=1e-6)
            assert (answer.probs_std is not None) == spread
            assert (answer.epistemic is not None) >= (name == "laplace")


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_scores_give_the_artifacts_decisions_at_its_risk(mixture_predictor: Predictor, name: str) -> None:
    texts = [{"text": f"The {noun} was {word}."} for noun in ("film", "lamp") for word in ("great", "dull", "good", "")]
    answers = mixture_predictor.predict(encode(mixture_predictor, texts), name)
    own = mixture_predictor.artifact.manifest.predictives[name].thresholds.review.target_risk  # type: ignore[index]
    assert mixture_predictor.decided(answers, own) == mixture_predictor.decided(answers, None) == answers
    # One threshold, the stated risk's: what is accepted is not called unsure, and what is called so is reviewed.
    at = {risk: mixture_predictor.decided(answers, risk) for risk in (0.0001, own, 0.6)}
    unsure = {risk: {"low_confidence" in answer.flags for answer in some} for risk, some in at.items()}
    assert unsure[0.0001] == {True}
    assert unsure[0.6] == {False}
    nothing = mixture_predictor.nothing_accepted(name, 0.0001)
    assert nothing is not None
    assert nothing.message.startswith(f"{name} accepts nothing at an error rate of 0.01 %: every answer goes to review")
    assert mixture_predictor.nothing_accepted(name, nothing.accepts_from) is None
    for answer in (answer for some in at.values() for answer in some):
        assert (answer.decision == "review") == bool(REVIEW_FLAGS.intersection(answer.flags))
    with pytest.raises(ConfigError):
        mixture_predictor.decided(answers, 1.5)
    assert mixture_predictor.decided(mixture_predictor.predict([], name), 0.2) == []
