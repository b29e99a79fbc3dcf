"""Rows with several labels, from the fit to the served answer: against dense matrices and one-dimensional integrals."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from head_artifacts import save_base
from scipy import integrate, special, stats
from telling import assert_served_as_fitted
from tiny_classifiers import adapted_classifier, classifier_base
from transformers import AutoTokenizer

import laplora
from laplora.answers.review_scores import read_scores, score_tensors
from laplora.errors import ArtifactCorruptError, ConfigError, DataError
from laplora.files.atomic import write_tensors
from laplora.fitting.rows import read_rows
from laplora.linearised import log_likelihood
from laplora.models.classifier_head import output_layer
from laplora.posterior.base import block_precisions
from laplora.settings import FitSettings

LABELS = ["news", "sport", "weather"]
#: Of 90 directions: nothing is left out.
SETTINGS = FitSettings.model_validate({"laplace": {"rank": 100, "joint_rank": 100}})
Rows = list[dict[str, Any]]


def rows(count: int, seed: int) -> Rows:
    """Return random rows of letters, each text once, with none to all of the labels."""
    draw, made = random.Random(seed), dict[str, list[str]]()
    while len(made) < count:
        text = " ".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 9)))
        made.setdefault(text, draw.sample(LABELS, draw.randint(0, 3)))
    return [{"text": text, "label": labels} for text, labels in made.items()]


def fitted_rows() -> Rows:
    """Return the training rows of ``posterior``: no twins of its calibration rows."""
    calibrating = {row["text"] for row in rows(20, 2)}
    return [row for row in rows(30, 1) if row["text"] not in calibrating]


def classifier_of(folder: Path, kind: str) -> laplora.Classifier:
    """Return a classifier with a probability for each label, its base in a folder; it is sure of what it guesses."""
    base = save_base(folder / "base", classifier_base(kind), head=kind == "modernbert")
    model = adapted_classifier(kind, dtype=torch.float32, problem_type="multi_label_classification")
    model.get_base_model().config._name_or_path = str(base)
    output_layer(model)[1].weight.data *= 8  # so that calibration rows want a variance
    return laplora.Classifier(model, AutoTokenizer.from_pretrained(base), "{text}", LABELS, max_tokens=12)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for bases, artifacts, and the cache."""
    folder = tmp_path_factory.mktemp("several")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPLORA_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def classifier(home: Path) -> laplora.Classifier:
    return classifier_of(home, "roberta")


@pytest.fixture(scope="module")
def posterior(classifier: laplora.Classifier) -> laplora.CalibratedPosterior:
    return laplora.fit(classifier, rows(30, 1), rows(20, 2), settings=SETTINGS, progress=False)


@pytest.fixture(scope="module")
def artifact(posterior: laplora.CalibratedPosterior, home: Path) -> Path:
    posterior.evaluate(rows(12, 4))
    return posterior.save(home / "several")


def dense_covariance(posterior: laplora.CalibratedPosterior, inputs: Rows) -> torch.Tensor:
    """Return the covariance of the labels' logits (inputs, labels, labels) from one explicit GGN in float64."""
    classifier, precision = posterior.classifier, posterior.fit.served.prior.precision["all"]
    model = classifier.model
    weights = [p for name, p in model.named_parameters() if "lora_" in name or "modules_to_save" in name]
    for weight in weights:
        weight.requires_grad_(True)

    def jacobian(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([classifier.tokenizer.encode(text)])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        grads = [torch.autograd.grad(f, weights, retain_graph=True) for f in logits]
        return torch.stack([torch.cat([g.flatten() for g in one]) for one in grads]).double(), logits.detach().double()

    size = sum(w.numel() for w in weights)
    precision_matrix = precision * torch.eye(size, dtype=torch.float64)
    for row in fitted_rows():
        j, logits = jacobian(row["text"])
        p = special.expit(logits.numpy())
        precision_matrix += j.T @ torch.diag(torch.tensor(p * (1 - p))) @ j
    covariance = torch.linalg.inv(precision_matrix)
    found = [jacobian(row["text"])[0] for row in inputs]
    for weight in weights:
        weight.requires_grad_(False)
    return torch.stack([j @ covariance @ j.T for j in found])


def test_the_posterior_is_the_dense_one_of_one_bernoulli_for_each_label(posterior: laplora.CalibratedPosterior) -> None:
    inputs = rows(5, 3)
    answers = posterior.predict(inputs, "laplace", batch_size=3, covariance=True)
    expected = dense_covariance(posterior, inputs)
    found = torch.tensor(np.array([answer.logit_covariance for answer in answers]))
    assert float(found.diagonal(dim1=1, dim2=2).mean()) > 0.1
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=1e-5)  # the fit is in float32
    variances = torch.tensor(np.array([answer.logit_variance for answer in answers]))
    torch.testing.assert_close(variances, found.diagonal(dim1=1, dim2=2))


def average(of: Any, mean: float, variance: float) -> float:
    """Return the mean of a function of a label's probability under its logit's Gaussian."""
    value, _ = integrate.quad(
        lambda t: of(special.expit(mean + variance**0.5 * t)) * stats.norm.pdf(t), -9, 9, limit=200
    )
    return float(value)


def test_probabilities_are_one_dimensional_integrals(posterior: laplora.CalibratedPosterior) -> None:
    for answer in posterior.predict(rows(5, 3), "laplace"):
        assert answer.logit_variance is not None
        assert answer.arrays.probs_std is not None
        total = expected = 0.0
        for k, gaussian in enumerate(zip(answer.logit_mean, answer.logit_variance, strict=True)):
            p = average(lambda p: p, *gaussian)
            assert answer.arrays.probs[k] == pytest.approx(p, abs=1e-6)
            assert answer.arrays.map_probs[k] == pytest.approx(special.expit(gaussian[0]), abs=1e-6)
            assert answer.arrays.probs_std[k] == pytest.approx(
                average(lambda q, p=p: (q - p) ** 2, *gaussian) ** 0.5, abs=1e-6
            )
            total += special.entr(p) + special.entr(1 - p)
            expected += average(lambda q: special.entr(q) + special.entr(1 - q), *gaussian)
        assert answer.total == pytest.approx(total, abs=1e-6)
        assert answer.aleatoric == pytest.approx(expected, abs=1e-6)
        assert answer.epistemic == pytest.approx(total - expected, abs=2e-6)


def test_training_rows_have_the_likelihood_of_every_label(posterior: laplora.CalibratedPosterior) -> None:
    probs = np.array([answer.arrays.map_probs for answer in posterior.predict(fitted_rows(), "map")])
    right = np.array([[label in row["label"] for label in LABELS] for row in fitted_rows()])
    expected = np.log(np.where(right, probs, 1 - probs)).sum()
    assert posterior.fit.log_likelihood == pytest.approx(expected, rel=1e-5)
    mask = torch.tensor([[True, True, False]])
    found = log_likelihood("bernoulli", torch.tensor([[1.0, -2.0, 9.0]]), torch.tensor([[1, 0, 0]]), mask)
    assert float(found) == pytest.approx(np.log(special.expit(1)) + np.log(1 - special.expit(-2)))


def test_the_calibration_is_that_of_binary_rows_made_by_hand(posterior: laplora.CalibratedPosterior) -> None:
    """One temperature and one threshold, from the pairs of a label's probability and whether it is right."""
    calibration = rows(20, 2)
    answers = posterior.predict(calibration, "map")
    logits = torch.tensor([[0.0, f] for answer in answers for f in answer.logit_mean], dtype=torch.float64)
    right = torch.tensor([int(label in row["label"]) for row in calibration for label in LABELS])
    record = posterior.fit.calibrated.predictives
    temperature = laplora.fit_temperature(logits, right, torch.ones_like(logits, dtype=torch.bool))
    assert record["temperature"].temperature == pytest.approx(temperature, rel=1e-4)
    nll = -float(logits.log_softmax(1).gather(1, right[:, None]).mean())
    assert record["map"].nll == pytest.approx(nll, abs=1e-6)
    of_right = np.sort(1 - special.expit(logits[right == 1, 1].numpy()))
    rank = int(np.ceil((len(of_right) + 1) * 0.9 - 1e-9))
    assert record["map"].conformal == pytest.approx(of_right[rank - 1], abs=1e-6)
    high = record["laplace"].thresholds.flags["high_epistemic"]
    assert high.origin == "0.95 quantile of the epistemic uncertainty of 20 rows of 'calibration'"
    assert posterior.fit.calibrated.calibration.rows == 20
    assert posterior.fit.calibrated.recommended.reason.startswith("NLL (lower is better) of 20 rows")
    # A contrast of (absent, present) has half the variance of the label's logit.
    split, fit = posterior.fit.calibration, posterior.fit
    assert split.together == 3
    precisions = block_precisions(fit.served.prior, fit.posterior.blocks)
    variances = fit.posterior.covariance(split.projected, precisions).flatten()
    expected = [v / 2 for answer in posterior.predict(calibration, "laplace") for v in answer.logit_variance]
    assert variances.tolist() == pytest.approx(expected, rel=1e-3)


def test_sets_labels_and_decisions_of_a_row_are_those_of_its_labels(posterior: laplora.CalibratedPosterior) -> None:
    record = posterior.fit.calibrated.predictives["laplace"]
    limit = record.thresholds.review.threshold
    for answer in posterior.predict(rows(40, 5), "laplace"):
        assert answer.labels_present == [n for n, p in answer.probs.items() if p > 0.5]
        assert answer.prediction_set == [n for n, p in answer.probs.items() if 1 - p <= record.conformal or p > 0.5]
        assert answer.label_index == int(answer.arrays.probs.argmax())
        assert answer.confidence == min(max(p, 1 - p) for p in answer.probs.values())
        worst = max(special.entr(p) + special.entr(1 - p) for p in answer.probs.values())
        assert answer.score == pytest.approx(worst, abs=1e-9)
        assert ("ambiguous_set" in answer.flags) == (answer.labels_present != answer.prediction_set)
        high = record.thresholds.flags["high_epistemic"].value
        assert high is not None
        assert answer.epistemic is not None
        assert ("high_epistemic" in answer.flags) == (answer.epistemic > high)
        to_review = limit is None or worst > limit or "high_epistemic" in answer.flags
        assert answer.decision == ("review" if to_review else "accept")
        assert posterior.predictor.decided([answer], 0.4)[0].rule.target_risk == 0.4


def test_metrics_are_by_label_with_intervals_by_row(posterior: laplora.CalibratedPosterior) -> None:
    test = rows(16, 6)
    measured = posterior.evaluate(test)
    answers = posterior.predict(test, "laplace")
    right = np.array([[label in row["label"] for label in LABELS] for row in test])
    probs = np.array([answer.arrays.probs for answer in answers])
    hits = (probs > 0.5) == right
    assert measured["laplace"].rows == 48
    assert measured["laplace"].accuracy == pytest.approx(hits.mean())
    nll = -np.where(right, np.log(probs), np.log1p(-probs)).mean()
    assert measured["laplace"].nll == pytest.approx(nll, abs=1e-5)
    by_label = measured.by_label["laplace"]
    assert by_label.exact_match == pytest.approx(hits.all(1).mean())
    for k, label in enumerate(by_label.labels):
        assert (label.present, label.accuracy) == (right[:, k].sum(), pytest.approx(hits[:, k].mean()))
        assert label.recall == pytest.approx((hits & right)[:, k].sum() / right[:, k].sum())
    sets = np.array([[label in answer.prediction_set for label in LABELS] for answer in answers])
    assert measured.sets["laplace"].coverage == pytest.approx(sets[right].mean())
    assert measured.sets["laplace"].mean_size == pytest.approx(sets.sum(1).mean())
    assert "\n16 rows, each of 3 labels measured on its own" in str(measured)
    one_row = [row | {"text": "a"} for row in [test[0]] * 4]  # of equal rows every resample is the same
    low, high = posterior.evaluate(one_row)["laplace"].intervals["nll"]
    assert low == pytest.approx(high, abs=1e-6)


def test_what_was_saved_answers_the_same(posterior: laplora.CalibratedPosterior, home: Path, artifact: Path) -> None:
    inputs = [{"text": row["text"]} for row in rows(4, 3)]
    loaded = assert_served_as_fitted(posterior, artifact, inputs, posterior.predictives)
    assert loaded.artifact.manifest.likelihood == "bernoulli"
    for name in loaded.predictives:
        kept, scores = loaded.review_scores[name], posterior.fit.scores[name]
        assert set((3 * kept.error).round(decimals=6).tolist()) <= {0.0, 1.0, 2.0, 3.0}  # of three labels
        assert torch.equal(torch.stack([kept.error, kept.score]), torch.stack([scores.error, scores.score]))
    tensors = score_tensors(posterior.fit.scores)
    write_tensors(home / "scores.safetensors", tensors | {"map.error": tensors["map.error"] + 2})
    with pytest.raises(ArtifactCorruptError, match="no share of labels"):
        read_scores(home / "scores.safetensors", ["map"], 20)


def test_rows_of_every_kind_are_the_same_rows(classifier: laplora.Classifier) -> None:
    named = rows(30, 8)
    numbered = [row | {"label": [LABELS.index(n) for n in row["label"]]} for row in named]
    vectors = [row | {"label": np.array([float(n in row["label"]) for n in LABELS])} for row in named]
    expected = [example.present for example in read_rows(named, classifier, "label")]
    assert {(), (0, 1, 2)} < set(expected)
    as_sets = [row | {"label": set(row["label"])} for row in named]
    for given in (vectors, as_sets, pd.DataFrame(named), pd.DataFrame(vectors)):
        assert [example.present for example in read_rows(given, classifier, "label")] == expected
    unclear = [row for row in numbered if not (len(row["label"]) == 3 and set(row["label"]) <= {0, 1})]
    assert [example.present for example in read_rows(unclear, classifier, "label")] == expected
    turned = ["weather", "news", "sport"]
    features = Features({"text": Value("string"), "label": Sequence(ClassLabel(names=turned))})
    data_set = Dataset.from_list([row | {"label": row["label"]} for row in named], features=features)
    assert [example.present for example in read_rows(data_set, classifier, "label")] == expected


def test_what_takes_one_label_a_row_is_refused_by_name(classifier: laplora.Classifier) -> None:
    for label, message in (
        (["news", "opera"], r"row 0: field 'label': label 'opera' is not among \['news', 'sport', 'weather'\]"),
        ([7], "the label is 7, expected a number from 0 to 2, or one of"),
        ("news", "must be a list of labels, since the model has a probability for each: put a single one into a list"),
        (None, r"\(the labels\) is missing: give a list, which may be empty"),
        (["n" * 40], "label a text of 40 characters is not among"),
    ):
        with pytest.raises(DataError, match=message):
            laplora.fit(classifier, [{"text": "a b", "label": label}], "split", progress=False)
    never = [row | {"label": [n for n in row["label"] if n != "sport"]} for row in rows(8, 1)]
    with pytest.raises(DataError, match=r"no row has the labels \['sport'\]"):
        laplora.fit(classifier, never, "split", progress=False)
    bound = FitSettings.model_validate({"calibration": {"guarantee": "upper_bound"}})
    with pytest.raises(ConfigError, match="labels of a row err together: use empirical"):
        laplora.fit(classifier, rows(8, 1), rows(8, 2), settings=bound, progress=False)
    with pytest.raises(ConfigError, match="several of a question's"):
        laplora.Classifier(classifier.model, classifier.tokenizer, "{question} {choices}", LABELS, max_tokens=12)
    one_label = adapted_classifier("roberta", dtype=torch.float32)
    single = laplora.Classifier(one_label, classifier.tokenizer, "{text}", LABELS, max_tokens=12)
    with pytest.raises(DataError, match="got a list: several labels need a model with a classification head"):
        laplora.fit(single, rows(8, 1), "split", progress=False)


def test_labels_that_come_later_condition_every_label(
    posterior: laplora.CalibratedPosterior, artifact: Path, home: Path
) -> None:
    """Each label of an input is a binary row, and an input with all its labels is in one fold."""
    place, inputs = Path(shutil.copytree(artifact, home / "later")), rows(5, 4)
    texts = {row["text"] for row in rows(60, 3)} - {row["text"] for row in rows(20, 2)}  # a known row is left out
    given = [{"text": text, "label": ["news"]} for text in sorted(texts)[:30]]  # which the first rows do not teach
    before = [answer.arrays.probs for answer in posterior.predict(inputs, "conditioned")]
    found = laplora.condition(place, given, progress=False, device="cpu", force=True)
    served = laplora.Predictor.load(place, device="cpu")
    encoded = [served.encode({"text": row["text"]}, truncate=True) for row in inputs]
    after = [answer.arrays.probs for answer in served.predict(encoded, "conditioned")]
    expected = [a.arrays.probs for a in posterior.condition(given, force=True).predict(inputs, "conditioned")]
    np.testing.assert_allclose(after, expected, rtol=0, atol=2e-3)
    moved = np.array(after) - before
    assert moved[:, 0].mean() > 0.05
    assert moved[:, 1:].mean() < 0
    assert found.rows == 30
    assert laplora.read_artifact(place).manifest.calibration.rows == 50
