"""One question in two orders, on a real tiny model: reversing it changes nothing, every field is a mixture's.

Prompts run one at a time: in bfloat16 another padding rounds elsewhere. What is left is the order of sums in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from laplora.errors import DataError, InvalidInputError
from laplora.predictor import Prediction, Predictor
from laplora.prompts.option_order import reverse_choices
from laplora.prompts.rows import EncodedRow

TWO = {"question": "Is a dull plot good?", "choices": ["good", "bad"]}
THREE = {"question": "Is a moving plot good?", "choices": ["good", "bad", "neither of them"]}
ROUNDING = 1e-12


def answers(predictor: Predictor, question: Sequence[EncodedRow], predictive: str) -> list[Prediction]:
    return [predictor.predict([row], predictive, also=["laplace"])[0] for row in question]


def averaged(predictor: Predictor, inputs: dict[str, Any], predictive: str) -> Prediction:
    question = predictor.encode_orders(inputs, truncate=False)
    return predictor.average_orders(answers(predictor, question, predictive))[0]


def values_of(answer: Prediction, name: str) -> Any:
    return getattr(answer if name.startswith("logit") else answer.arrays, name)


def by_text(inputs: dict[str, Any], values: Any) -> dict[str, float]:
    return dict(zip(inputs["choices"], values, strict=True))


@pytest.mark.parametrize("inputs", [TWO, THREE])
@pytest.mark.parametrize("predictive", ["map", "laplace"])
def test_the_answer_is_that_of_the_question_in_reverse(
    choices_predictor: Predictor, inputs: dict[str, Any], predictive: str
) -> None:
    truth, single = averaged(choices_predictor, inputs, predictive), []
    for question in (inputs, reverse_choices(inputs)):
        got = averaged(choices_predictor, question, predictive)
        for name in ("probs", "map_probs", "probs_std", "logit_mean", "logit_variance"):
            wanted = by_text(inputs, values_of(truth, name))
            assert by_text(question, values_of(got, name)) == pytest.approx(wanted, abs=ROUNDING), name
        for name in ("total", "aleatoric", "epistemic", "label_mass", "score", "familiarity", "order_information"):
            assert getattr(got, name) == pytest.approx(getattr(truth, name), abs=ROUNDING), name
        assert (got.flags, got.decision) == (truth.flags, truth.decision)
        chosen = [question["choices"][got.labels.index(label)] for label in got.prediction_set]
        assert set(chosen) == {inputs["choices"][truth.labels.index(label)] for label in truth.prediction_set}
        alone = choices_predictor.predict([choices_predictor.encode(question, truncate=False)], predictive)[0]
        single.append(alone.arrays.probs[question["choices"].index("good")])
    assert max(single) - min(single) > 1e-3  # a single order does


def test_every_field_is_the_mixtures(choices_predictor: Predictor) -> None:
    question = choices_predictor.encode_orders(THREE, truncate=False)
    each = choices_predictor.predict(question, "laplace", covariance=True)
    got = choices_predictor.average_orders(each)[0]
    assert got.orders == len(question) == 2
    assert question[0] == choices_predictor.encode(THREE, truncate=False)
    inverse = [[0, 1, 2], [2, 1, 0]]

    def restored(name: str) -> torch.Tensor:
        rows = [[values_of(p, name)[i] for i in at] for p, at in zip(each, inverse, strict=True)]
        return torch.tensor(rows, dtype=torch.float64)

    probs, std, mean = restored("probs"), restored("probs_std"), restored("logit_mean")
    assert got.arrays.probs == pytest.approx(probs.mean(0).tolist(), abs=ROUNDING)
    assert got.arrays.map_probs == pytest.approx(restored("map_probs").mean(0).tolist(), abs=ROUNDING)
    variance = (std**2 + probs**2).mean(0) - probs.mean(0) ** 2
    # The difference of squares cancels.
    assert got.arrays.probs_std == pytest.approx(variance.sqrt().tolist(), abs=1e-9)
    assert got.logit_mean == pytest.approx(mean.mean(0).tolist(), abs=ROUNDING)
    assert got.logit_covariance is not None
    within = [torch.tensor(p.logit_covariance)[at][:, at] for p, at in zip(each, inverse, strict=True)]
    wanted = torch.stack(within).double().mean(0) + torch.cov(mean.T, correction=0)
    torch.testing.assert_close(torch.tensor(got.logit_covariance).double(), wanted, atol=1e-6, rtol=1e-5)  # float32
    assert got.aleatoric == pytest.approx(sum(p.aleatoric or 0 for p in each) / 2, abs=ROUNDING)
    assert got.total == pytest.approx((got.aleatoric or 0) + (got.epistemic or 0), abs=ROUNDING)
    within_orders = sum(p.epistemic or 0 for p in each) / 2
    assert got.epistemic == pytest.approx(within_orders + (got.order_information or 0), abs=ROUNDING)
    assert got.tokens == sum(p.tokens for p in each)
    for name, values in got.arrays.calibrated_probs.items():
        if name == "temperature":  # has another one for two orders (``fitting.reversed_choices``)
            continue
        rows = [[p.arrays.calibrated_probs[name][i] for i in at] for p, at in zip(each, inverse, strict=True)]
        assert values == pytest.approx(torch.tensor(rows, dtype=torch.float64).mean(0).tolist(), abs=ROUNDING)
    assert got.calibrated_scores.keys() == got.calibrated_probs.keys()
    # A batch of questions is each alone.
    rows = [row for inputs in (TWO, THREE) for row in choices_predictor.encode_orders(inputs, truncate=False)]
    together = choices_predictor.average_orders(choices_predictor.predict(rows, "laplace"))
    assert together[1].probs == pytest.approx(got.probs, abs=0.02)  # bfloat16


def test_what_cannot_be_reordered_is_refused(choices_predictor: Predictor, sentiment_predictor: Predictor) -> None:
    with pytest.raises(InvalidInputError, match="template 'sentiment' takes none"):
        sentiment_predictor.encode_orders({"text": "dull"}, truncate=False)
    question = choices_predictor.encode_orders(TWO, truncate=False)
    with pytest.raises(DataError, match="1 predictions are not those"):
        choices_predictor.average_orders(choices_predictor.predict(question[:1]))
