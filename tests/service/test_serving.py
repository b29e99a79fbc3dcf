"""The fake predictor keeps the real one's promises; that it is called alike, mypy says."""

from __future__ import annotations

from typing import Any

import pytest
from serving import FakePredictor

from laplora.encoder import Encoder
from laplora.errors import TooManyTokensError
from laplora.predictor import Predictor


@pytest.fixture(params=["fake", "real"])
def predictor(request: pytest.FixtureRequest, sentiment_predictor: Predictor) -> Any:
    """Either of them, of two classes."""
    return FakePredictor() if request.param == "fake" else sentiment_predictor


def test_the_fake_leaves_to_the_real_one_only_what_no_server_calls() -> None:
    offered = {name for one in (Encoder, Predictor) for name in vars(one) if not name.startswith("_")}
    assert offered - set(vars(FakePredictor)) == {
        *("load", "of_folder", "predict_all", "predict_each", "batch_tokens"),
        *("named", "side", "thresholds"),  # of decided and encode
        "devices",  # of a meter, which a GPU alone has
        *("adapted", "as_version", "outputs", "precisions", "tokenizer"),  # of labels that come later
    }


def test_each_row_has_its_answer_and_its_decision(predictor: Any) -> None:
    texts = ("a", "a much longer text than the other one")
    rows = [predictor.encode({"text": text}, truncate=False) for text in texts]
    for name in ("map", "laplace"):
        answers = predictor.predict(rows, name)
        for row, answer in zip(rows, answers, strict=True):
            assert answer.predictive == name
            assert (answer.tokens, answer.truncated) == (len(row.token_ids), False)
            assert len(answer.labels) == row.class_count == predictor.class_count
            assert (answer.arrays.probs.sum(), answer.arrays.map_probs.sum()) == (pytest.approx(1), pytest.approx(1))
            spread = (answer.probs_std, answer.aleatoric, answer.epistemic, answer.logit_variance)
            assert [part is None for part in spread] == [name == "map"] * 4
        for risk in (None, 0.3):
            decided = predictor.decided(answers, risk)
            assert [answer.probs for answer in decided] == [answer.probs for answer in answers]
            assert risk is None or decided[0].rule.target_risk == risk
    assert predictor.recommended in predictor.predictives
    assert predictor.predict(rows)[0].predictive == predictor.recommended
    beside = predictor.predict(rows, "map", also=("laplace",))[0]
    assert (beside.predictive, beside.logit_variance is None) == ("map", False)


def test_a_prompt_that_is_too_long(predictor: Any) -> None:
    inputs = {"text": "good " * (2 * predictor.max_tokens)}
    with pytest.raises(TooManyTokensError) as refused:
        predictor.encode(inputs, truncate=False)
    assert refused.value.limit == predictor.max_tokens < refused.value.got
    row = predictor.encode(inputs, truncate=True)
    assert (len(row.token_ids), row.truncated) == (predictor.max_tokens, True)
