"""From an artifact to answers, against plain transformers and peft on the same files (``plain_model``)."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_model import BFLOAT16, BFLOAT16_REAL, FLOAT32, SENTIMENT_INPUTS, PlainModel, distance, encode
from tiny_runs import FinishedRun, choice_rows, sentiment_rows

from benchmarks.harness.provenance import ARTIFACT
from laplora.answers.prediction import PosteriorSpread, Prediction
from laplora.errors import GoldenMismatchError, NonFiniteError
from laplora.models import held_weights
from laplora.models.held_weights import packed_linears
from laplora.predictor import Predictor
from laplora.prompts.rows import EncodedRow

VARIANCE_BFLOAT16 = 0.05

CHOICE_INPUTS = [
    {"question": "Is a dull plot good?", "choices": ["good", "bad"]},
    {"question": "Is a moving plot good, or is it " + "not " * 20 + "?", "choices": ["good", "bad", "neither of them"]},
    {"question": "?", "choices": ["x", "y", "z"]},
]


def check_against_plain(predictor: Predictor, inputs: Sequence[dict[str, Any]], tolerance: float) -> None:
    """Check that an answer is that of plain transformers and peft, whatever else is in the batch."""
    plain, record = PlainModel(predictor.artifact), predictor.artifact.manifest.predictives["temperature"]
    want, tempered = ([plain.probs(i, by) for i in inputs] for by in (1.0, record.temperature))
    del plain
    rows = encode(predictor, inputs)
    together = predictor.predict(rows, "map")
    with_variance = predictor.predict(rows)
    for i, row in enumerate(rows):
        alone = predictor.predict([row], "map")[0]
        for answer in (alone, together[i], with_variance[i]):
            assert distance(answer.arrays.map_probs, want[i]) < tolerance
            assert distance(answer.arrays.calibrated_probs["temperature"], tempered[i]) < tolerance


def test_map_and_temperature_are_a_plain_forward_in_float32_and_in_4_bit(
    sentiment_predictor: Predictor, choices_predictor: Predictor
) -> None:
    check_against_plain(sentiment_predictor, SENTIMENT_INPUTS, FLOAT32)
    check_against_plain(choices_predictor, CHOICE_INPUTS, BFLOAT16)


def test_packed_4_bit_weights_give_the_same_answers(
    choices_run: FinishedRun, choices_predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpacked at load or, where memory does not allow it, used as they are: the same numbers, variances too.

    A variance is a sum of squares of thousands of entries with some tens of roundings of 2^-8 each, which mostly
    cancel: 7e-4 of it was seen, one rounding for each of them in a row is allowed.
    """
    stages: list[str] = []
    monkeypatch.setattr(held_weights, "available_memory_bytes", lambda: 0)
    packed = Predictor.load(choices_run.artifact, device="cpu", progress=stages.append)
    assert (stages[0], stages[-1]) == ("verifying artifact", "replaying golden answers")
    assert packed_linears(packed.base.model)
    assert (packed.weights.held, choices_predictor.weights.held) == ("packed", "expanded")
    assert "available are 0.00 GiB" in packed.weights.reason
    for one, two in zip(
        packed.predict(encode(packed, CHOICE_INPUTS)),
        choices_predictor.predict(encode(choices_predictor, CHOICE_INPUTS)),
        strict=True,
    ):
        assert distance(one.arrays.map_probs, two.arrays.map_probs) < BFLOAT16
        assert distance(one.arrays.probs, two.arrays.probs) < BFLOAT16
        assert one.logit_variance == pytest.approx(two.logit_variance, rel=VARIANCE_BFLOAT16)


def check_answer(predictor: Predictor, row: EncodedRow, answer: Prediction) -> None:
    count = row.class_count
    assert answer.labels == predictor.artifact.manifest.labels[:count]
    assert answer.finite
    for hole in ({"expected_cost": math.inf}, {"posterior": PosteriorSpread(answer.arrays.probs, math.nan, 0.0)}):
        assert not dataclasses.replace(answer, **hole).finite  # type: ignore[arg-type]
    for probs in (answer.map_probs, answer.probs, answer.calibrated_probs["temperature"]):
        assert tuple(probs) == answer.labels
        assert min(probs.values()) >= 0
        assert sum(probs.values()) == pytest.approx(1, abs=1e-9)
    assert answer.label_index == answer.arrays.probs.argmax()
    assert sum(answer.logit_mean) == pytest.approx(0, abs=1e-6)
    assert torch.tensor(answer.logit_mean).softmax(-1).tolist() == pytest.approx(answer.arrays.map_probs, abs=1e-6)
    assert 0 <= answer.label_mass <= 1
    assert answer.label in answer.prediction_set
    assert set(answer.prediction_set) <= set(answer.labels)
    posterior = (answer.probs_std, answer.logit_variance, answer.logit_covariance, answer.epistemic, answer.aleatoric)
    if answer.predictive == "map":
        assert answer.probs == answer.map_probs
        assert posterior == (None,) * 5
        return
    assert not any(one is None for one in posterior)
    covariance = torch.tensor(answer.logit_covariance)
    assert covariance.shape == (count, count)
    assert covariance.diagonal().tolist() == pytest.approx(answer.logit_variance)
    torch.testing.assert_close(covariance, covariance.T)
    # centred: the direction of equal shifts, which the softmax does not see, has no variance
    torch.testing.assert_close(covariance.sum(0), torch.zeros(count, dtype=torch.float64), atol=1e-9, rtol=0)
    assert float(torch.linalg.eigvalsh(covariance).min()) > -1e-9
    assert answer.total == pytest.approx(answer.aleatoric + answer.epistemic, abs=1e-6)
    assert all(0 <= s <= 0.5 for s in (answer.probs_std or {}).values())


@pytest.mark.parametrize("name", ["laplace", "map"])
def test_answers_hold_together(sentiment_predictor: Predictor, choices_predictor: Predictor, name: str) -> None:
    texts = [{"text": row["text"]} for row in sentiment_rows()[:20]]
    questions = [{name: row[name] for name in ("question", "choices")} for row in choice_rows()[:20]]
    for predictor, inputs in (
        (sentiment_predictor, SENTIMENT_INPUTS + texts),
        (choices_predictor, CHOICE_INPUTS + questions),
    ):
        rows = encode(predictor, inputs)
        answers = predictor.predict(rows, name, covariance=True)
        for row, answer in zip(rows, answers, strict=True):
            check_answer(predictor, row, answer)
        probs = [answer.arrays.map_probs[1] for answer in answers]
        assert max(probs) - min(probs) > 0.3, "a model that always says one half would prove little here"
        # Batch 1 of one token: the case in which bitsandbytes takes another kernel, and sums are over nothing.
        (answer,) = predictor.predict([row := EncodedRow((260,), predictor.class_count)], name, covariance=True)
        check_answer(predictor, row, answer)
        (answer,) = predictor.predict([predictor.encode({"prompt": "word " * 100}, truncate=True)], name)
        assert answer.truncated
        assert "truncated" in answer.flags


def test_the_default_artifact_answers_and_map_is_a_plain_forward(base_model_folder: Path) -> None:
    real_predictor = Predictor.load(ARTIFACT, device="cpu")
    questions = ("What is a hash table?", "Who may sue for breach of a contract?", "Which nerve moves the tongue?")
    inputs = [{"text": text} for text in questions]
    check_against_plain(real_predictor, inputs, BFLOAT16_REAL)
    rows = encode(real_predictor, inputs)
    answers = real_predictor.predict(rows, covariance=True)
    for row, answer in zip(rows, answers, strict=True):
        check_answer(real_predictor, row, answer)
    assert [answer.label for answer in answers] == ["computing", "law", "medicine"]


def with_precision(predictor: Predictor, precision: float) -> Predictor:
    """Return the predictor under another prior."""
    other = copy.copy(predictor)
    precisions = torch.full_like(predictor.precisions, precision)
    other._adapted = dataclasses.replace(predictor._adapted, precisions=precisions)
    return other


def test_an_infinitely_sharp_prior_is_map_and_an_infinite_variance_no_answer(
    sentiment_predictor: Predictor, choices_predictor: Predictor
) -> None:
    """At precision 1e15 what is left of the variance is below float64's rounding of a probability."""
    for loaded, inputs in ((sentiment_predictor, SENTIMENT_INPUTS), (choices_predictor, CHOICE_INPUTS)):
        predictor, rows = with_precision(loaded, 1e15), encode(loaded, inputs)
        for answer in predictor.predict(rows):
            assert distance(answer.arrays.probs, answer.arrays.map_probs) < 1e-8
            assert max(answer.logit_variance) < 1e-9
            assert answer.epistemic == pytest.approx(0, abs=1e-8)
        broken = with_precision(loaded, math.nan)
        for ask in (partial(broken.predict, rows), broken.verify_golden):
            with pytest.raises(NonFiniteError):
                ask()


def test_golden_answers_are_replayed_one_in_a_pass_and_compared_all_together(sentiment_predictor: Predictor) -> None:
    """No pass takes longer than one answer's; variances that all move one way may move less than each alone."""
    golden = json.loads((sentiment_predictor.artifact.path / "golden.json").read_text())
    factor = math.exp(0.8 * golden["variance_tolerance"])
    passes: list[int] = []

    def moved(one_pass: Any) -> Any:
        answers = one_pass()
        passes.append(len(answers))
        return [dataclasses.replace(a, logit_variance=a.logit_variance * factor) for a in answers]

    with pytest.raises(GoldenMismatchError, match="together"):
        sentiment_predictor.verify_golden(moved)
    assert passes == [1] * len(golden["answers"])
    assert len(passes) > 1
