"""The scikit-learn face: its contract with cross-validation and clones, and that its answers are the posterior's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from head_artifacts import save_base
from peft import PeftModel
from scipy.sparse import csr_matrix
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, cross_val_score
from tiny_classifiers import adapted_classifier, classifier_base
from tiny_runs import FinishedRun
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.errors import ConfigError, DataError, LaploraWarning
from laplora.models.quiet import quiet_loading
from laplora.prompts.templates import TEMPLATES
from laplora.sklearn import LaploraClassifier
from training.workspace.runtime import open_run

SETTINGS = laplora.FitSettings.model_validate({"laplace": {"rank": 4, "oversampling": 4}})


@pytest.fixture(scope="module")
def rows(sentiment_run: FinishedRun) -> tuple[list[str], list[str]]:
    """Texts and labels of the run's training rows."""
    splits = open_run(sentiment_run.config).splits
    return [e.fields["text"] for e in splits.train], [splits.task.labels[e.label] for e in splits.train]


@pytest.fixture(scope="module")
def parts(sentiment_run: FinishedRun) -> tuple[Any, Any]:
    base = AutoModelForCausalLM.from_pretrained(sentiment_run.base, dtype=torch.float32)
    with quiet_loading():  # peft warns of a tied lm_head
        model = PeftModel.from_pretrained(base, str(sentiment_run.config.run_dir / "adapter"))
    return model, AutoTokenizer.from_pretrained(sentiment_run.base)


def make(parts: tuple[Any, Any], **options: Any) -> LaploraClassifier:
    given = {"template": TEMPLATES["sentiment"], "settings": SETTINGS, "max_tokens": 64, "calibration": "split"}
    return LaploraClassifier(*parts, **(given | options))


@pytest.fixture(scope="module")
def fitted(parts: tuple[Any, Any], rows: tuple[list[str], list[str]]) -> LaploraClassifier:
    with pytest.warns(LaploraWarning, match="8 calibration rows are fewer than 20"):  # though it shows no progress
        return make(parts).fit(*rows)


def test_cross_validation(parts: tuple[Any, Any], rows: tuple[list[str], list[str]]) -> None:
    """Folds are stratified, fitted on clones that share the model, and scored by their probabilities."""
    classifier = make(parts, labels=["positive", "negative"])
    before = {name: weight.clone() for name, weight in parts[0].named_parameters()}
    scores = cross_val_score(classifier, *rows, cv=2, scoring="neg_log_loss", error_score="raise")
    assert scores.shape == (2,)
    assert bool((scores < 0).all())
    assert float(scores.mean()) > np.log(0.5)  # better than a coin: the model was trained on these rows
    assert not hasattr(classifier, "posterior_")
    assert all(torch.equal(weight, before[name]) for name, weight in parts[0].named_parameters())


def test_a_clone_shares_the_model(fitted: LaploraClassifier, parts: tuple[Any, Any]) -> None:
    copy = clone(fitted)
    assert copy.model is parts[0]
    assert copy.tokenizer is parts[1]
    assert copy.get_params(deep=False) == fitted.get_params(deep=False)
    assert is_classifier(copy)
    with pytest.raises(NotFittedError):
        copy.predict(["fine"])
    assert copy.set_params(predictive="map").predictive == "map"
    assert fitted.predictive is None


def test_probabilities_are_the_posteriors(fitted: LaploraClassifier, rows: tuple[list[str], list[str]]) -> None:
    texts, labels = rows
    probs = fitted.predict_proba(texts[:7])
    assert fitted.classes_.tolist() == ["negative", "positive"]
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-12)
    answers = fitted.posterior_.predict([{"text": text} for text in texts[:7]])
    for row, answer in zip(probs, answers, strict=True):
        assert dict(zip(fitted.classes_.tolist(), row, strict=True)) == pytest.approx(answer.probs)
    assert fitted.predict(texts[:7]).tolist() == [answer.labels[answer.label_index] for answer in answers]
    right = np.mean(fitted.predict(texts) == np.array(labels))
    assert fitted.score(texts, labels) == pytest.approx(right)
    assert right > 0.8
    # Rows may be of every kind.
    frame, given = pd.DataFrame({"text": texts[:5], "stars": range(5)}), texts[:5]
    for kind in ([{"text": text} for text in given], frame, frame["text"], np.array(given), np.array(given, object)):
        np.testing.assert_array_equal(fitted.predict_proba(kind), fitted.predict_proba(given))


def test_numbers_are_predicted_where_numbers_were_given(
    parts: tuple[Any, Any], rows: tuple[list[str], list[str]], fitted: LaploraClassifier
) -> None:
    """Numbers count the labels as given: here the other way round than sorted."""
    texts, labels = rows
    numbers = [["positive", "negative"].index(label) for label in labels]
    numbered = make(parts, labels=["positive", "negative"]).fit(texts, numbers)
    assert numbered.classes_.tolist() == [0, 1]
    assert set(numbered.predict(texts).tolist()) == {0, 1}
    assert numbered.score(texts, numbers) == fitted.score(texts, labels)
    named = make(parts, labels=["positive", "negative"], predictive="map").fit(*rows)
    assert named.classes_.tolist() == ["negative", "positive"]
    plain = fitted.posterior_.predict([{"text": texts[0]}], "map")[0]
    assert named.predict_proba(texts[:1])[0] == pytest.approx(plain.arrays.probs, abs=1e-6)


def test_calibration_rows_are_given_or_a_share(parts: tuple[Any, Any], rows: tuple[list[str], list[str]]) -> None:
    texts, labels = rows
    given = make(parts, calibration=(texts[24:], labels[24:])).fit(texts[:24], labels[:24])
    assert given.posterior_.data["rows"] == {"train": 24, "calibration": 16}
    share = make(parts, calibration=0.25).fit(texts, labels)
    assert share.posterior_.data["rows"] == {"train": 30, "calibration": 10}


@pytest.mark.parametrize(
    ("X", "y", "options", "message"),
    [
        ("a text", ["negative", "positive"], {}, "X must be a list of texts"),
        ([3, 4], ["negative", "positive"], {}, "row 0 of X must be a text or a dict, got int"),
        (["a"], ["only"], {"labels": ["only"]}, "two different names"),
        (["a", "b"], ["negative", "positive"], {"labels": "{text}:"}, "the template comes before the labels"),
        (["a", "b"], [0.5, 0.7], {}, "Unknown label type"),
        (["a", "b"], ["negative", "positive"], {"calibration": None}, "there are no calibration rows"),
        (["a", "b"], ["negative"], {"labels": ["negative", "positive"]}, "X has 2 rows and y 1"),
        (["a", "b"], ["good", "positive"], {"labels": ["negative", "positive"]}, r"y has \['good'\]"),
        (["a", "b"], [0, 2], {"labels": ["negative", "positive"]}, r"y has the numbers \[2\]"),
    ],
)
def test_what_cannot_be_fitted(X: Any, y: Any, options: dict[str, Any], message: str, parts: tuple[Any, Any]) -> None:
    with pytest.raises((DataError, ConfigError, ValueError), match=message):
        make(parts, **options).fit(X, y)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tiny decoder with a probability for each of three labels, and its tokenizer."""
    base = save_base(tmp_path_factory.mktemp("several") / "base", classifier_base("llama"), head=False)
    model = adapted_classifier("llama", dtype=torch.float32, problem_type="multi_label_classification")
    return model, AutoTokenizer.from_pretrained(base)


def indicated(count: int = 30) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return random texts and an indicator matrix of three labels."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(list("abcdefghijklmnop"), size=draw.integers(1, 9))) for _ in range(count)]
    return texts, draw.integers(0, 2, (count, 3))


def of_several(parts: tuple[Any, Any], **options: Any) -> LaploraClassifier:
    settings = laplora.FitSettings.model_validate({})
    return LaploraClassifier(
        *parts, **({"template": "{text}", "settings": settings, "max_tokens": 12, "calibration": 0.2} | options)
    )


def test_several_labels_are_an_indicator_matrix(several: tuple[Any, Any]) -> None:
    texts, y = indicated()
    names = ["news", "sport", "weather"]
    fitted = of_several(several, labels=names, predictive="map").fit(texts, y)
    assert fitted.classes_.tolist() == [0, 1, 2]
    probs = fitted.predict_proba(texts)
    answers = fitted.posterior_.predict([{"text": text} for text in texts], "map")
    np.testing.assert_allclose(probs, [answer.arrays.probs for answer in answers], atol=1e-6)
    predicted = fitted.predict(texts)
    np.testing.assert_array_equal(predicted, probs > 0.5)
    assert [answer.labels_present for answer in answers] == [
        [n for n, held in zip(names, row, strict=True) if held] for row in predicted
    ]
    assert fitted.score(texts, y) == pytest.approx((predicted == y).all(1).mean())
    assert fitted.score(texts, predicted) == 1
    frame = pd.DataFrame(y, columns=names)
    for given in (frame, csr_matrix(y)):
        again = of_several(several, predictive="map").fit(texts, given)
        np.testing.assert_allclose(again.predict_proba(texts), probs, atol=1e-6)
    assert of_several(several).fit(texts, frame).posterior_.classifier.labels == tuple(names)


def test_several_labels_cross_validate(several: tuple[Any, Any]) -> None:
    texts, y = indicated()
    by_loss = cross_val_score(of_several(several), texts, y, cv=2, scoring="average_precision", error_score="raise")
    assert bool((by_loss > 0).all())
    held = of_several(several, calibration=(texts[20:], y[20:])).fit(texts[:20], y[:20])
    assert held.posterior_.fit.calibrated.calibration.rows == 10
    shared = of_several(several, calibration=0.5).fit(texts, y)
    assert shared.posterior_.fit.calibrated.calibration.rows == 15
    groups = np.arange(30) // 3
    options = {"cv": GroupKFold(2), "scoring": "average_precision", "error_score": "raise"}
    by_group = cross_val_score(
        of_several(several, calibration=0.5), texts, y, groups=groups, params={"groups": groups}, **options
    )
    assert bool((by_group > 0).all())
    held = of_several(several, calibration=(texts[20:], y[20:], groups[20:])).fit(texts[:20], y[:20], groups[:20])
    assert held.posterior_.fit.calibration.input_groups.tolist() == (groups[20:] - 6).tolist()


def test_what_is_no_indicator_matrix_for_the_model(several: tuple[Any, Any], parts: tuple[Any, Any]) -> None:
    texts, y = indicated()
    with pytest.raises(DataError, match="y has 3 columns, and there are 2 labels"):
        of_several(several, labels=["news", "sport"]).fit(texts, y)
    with pytest.raises(DataError, match="must be a list of labels"):
        of_several(several, labels=["0", "1", "2"]).fit(texts, y[:, 0])
    with pytest.raises(DataError, match="columns, expected 3"):
        of_several(several, calibration=(texts, y[:, :2])).fit(texts, y)
    with pytest.raises(DataError, match="got a list: several labels need a model"):
        make(parts, labels=["negative", "positive"]).fit(texts, y[:, :2])
