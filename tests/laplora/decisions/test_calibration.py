"""Temperature scaling against scipy's minimiser and calculus; conformal sets against their coverage promise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from laplora.decisions.temperature import (
    TEMPERATURE_BOUNDS,
    SmallCalibrationWarning,
    aps_sets,
    aps_threshold,
    conformal_threshold,
    empirical_coverage,
    fit_temperature,
    prediction_sets,
    temperature_penalty,
    temperature_probs,
    warn_about_labels,
)
from laplora.errors import ConfigError, DataError, NonFiniteError
from laplora.metrics.scores import nll

F64 = torch.float64


def random_split(rows: int, classes: int, sharpness: float, seed: int) -> tuple[torch.Tensor, ...]:
    """Return logits that are ``sharpness`` times the truth, labels from the truth, and a mask of prefixes."""
    g = torch.Generator().manual_seed(seed)
    truth = 2 * torch.randn(rows, classes, generator=g, dtype=F64)
    mask = torch.arange(classes) < torch.randint(2, classes + 1, (rows, 1), generator=g)
    probs = torch.softmax(truth.masked_fill(~mask, -math.inf), 1)
    labels = torch.multinomial(probs, 1, generator=g)[:, 0]
    return sharpness * truth + 50 * torch.randn(rows, 1, generator=g, dtype=F64), labels, mask


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_temperature_is_scipys_minimum_of_the_penalised_nll(sharpness: float, classes: int) -> None:
    logits, labels, mask = random_split(400, classes, sharpness, seed=classes)
    got = fit_temperature(logits, labels, mask)

    def objective(log_temperature: float) -> float:
        penalty = temperature_penalty(log_temperature, len(labels))
        return nll(temperature_probs(logits, math.exp(log_temperature), mask), labels) + penalty

    best = optimize.minimize_scalar(objective, bounds=(-3, 4), method="bounded", options={"xatol": 1e-9})
    # A minimiser that sees values only resolves the place to the square root of rounding, about 1e-7.
    assert math.log(got) == pytest.approx(best.x, abs=1e-6)
    assert objective(math.log(got)) <= best.fun + 1e-14
    # The labels came from the logits divided by the sharpness; 400 rows fix T to about 10 %.
    assert got == pytest.approx(sharpness, rel=0.4)


def test_temperature_ignores_impossible_logits_and_common_shifts() -> None:
    logits, labels, mask = random_split(100, 4, 2.0, seed=3)
    got = fit_temperature(logits, labels, mask)
    poisoned = logits.masked_fill(~mask, math.nan)
    assert fit_temperature(poisoned, labels, mask) == got
    # The shift costs rounding of 1e-13 in each logit.
    assert fit_temperature(logits + 1000, labels, mask) == pytest.approx(got, rel=1e-10)
    probs = temperature_probs(poisoned, got, mask)
    assert (probs[~mask] == 0).all()
    torch.testing.assert_close(probs.sum(1), torch.ones(100, dtype=F64), atol=1e-14, rtol=0)


def test_temperature_one_is_the_softmax_and_temperature_keeps_the_answer() -> None:
    logits, _, _ = random_split(50, 3, 1.0, seed=4)
    mask = torch.ones(50, 3, dtype=torch.bool)
    assert torch.equal(temperature_probs(logits, 1.0, mask), torch.softmax(logits, 1))
    for temperature in (0.1, 7.0):
        assert torch.equal(temperature_probs(logits, temperature, mask).argmax(1), logits.argmax(1))


def test_the_penalty_is_a_gamma_prior_of_one_row() -> None:
    def log_density(inverse: float) -> float:
        return float(stats.gamma(2).logpdf(inverse))

    for temperature in (0.05, 0.5, 1.0, 3.0, 100.0):
        for rows in (1, 150):
            want = (log_density(1) - log_density(1 / temperature)) / rows
            assert temperature_penalty(math.log(temperature), rows) == pytest.approx(want, abs=1e-12)


def test_temperature_meets_its_bounds_only_where_the_rows_outweigh_the_prior() -> None:
    mask = torch.ones(3, 2, dtype=torch.bool)
    logits = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    right = torch.tensor([0, 0, 1])
    assert 0.5 < fit_temperature(logits, right, mask) < 1
    assert 1 < fit_temperature(logits, 1 - right, mask) < 10
    # Huge logits do not overflow.
    assert fit_temperature(1e6 * logits, 1 - right, mask) == TEMPERATURE_BOUNDS[1]
    # Ten thousand rows that are all right with hardly any confidence are no accident.
    assert (
        fit_temperature(0.05 * logits.repeat(10_000, 1), right.repeat(10_000), mask.repeat(10_000, 1))
        == (TEMPERATURE_BOUNDS[0])
    )


@pytest.mark.parametrize("deviation", [41.0, 85.0])
def test_rows_without_a_mistake_do_not_sharpen_an_accurate_calibrated_model(deviation: float) -> None:
    """At these deviations 13 and 38 % of all splits of 150 rows have no mistake; the true temperature is 1."""
    g = torch.Generator().manual_seed(0)
    mask, separable = torch.ones(4000, 2, dtype=torch.bool), 0
    for _ in range(40):
        truth = deviation * torch.randn(4150, generator=g, dtype=F64)
        labels = (torch.rand(4150, generator=g, dtype=F64) < torch.sigmoid(truth)).long()
        logits = torch.stack([torch.zeros_like(truth), truth], 1)
        got = fit_temperature(logits[:150], labels[:150], mask[:150])
        separable += bool(((truth[:150] > 0) == (labels[:150] == 1)).all())
        # One row's worth of "T is 1" against rows that say nothing below it: the least over 300 splits was 0.38.
        assert got > 0.3
        cost = nll(temperature_probs(logits[150:], got, mask), labels[150:]) - nll(
            temperature_probs(logits[150:], 1.0, mask), labels[150:]
        )
        assert cost < 0.05  # the largest of 300 was 0.03; at the bound it is 0.1 and more
    assert separable >= 1


@given(rows=st.integers(1, 60), level=st.floats(0.05, 0.99), seed=st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_conformal_threshold_is_numpys_higher_quantile(rows: int, level: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    probs = torch.softmax(torch.randn(rows, 3, generator=g, dtype=F64), 1)
    labels = torch.randint(3, (rows,), generator=g)
    got = conformal_threshold(probs, labels, level)
    scores = 1 - probs.numpy()[np.arange(rows), labels.numpy()]
    rank = math.ceil((rows + 1) * level - 1e-9)
    if rank > rows:
        assert got == 1.0
    else:
        # At least that many calibration rows are covered, and one score less would cover fewer.
        assert (scores <= got).sum() >= rank
        assert (scores < got).sum() < rank
    # A higher level never gives a smaller set.
    assert conformal_threshold(probs, labels, min(0.995, level + 0.1)) >= got


def test_conformal_rank_is_not_pushed_up_by_rounding() -> None:
    """0.55 * (99 + 1) is 55.00000000000001: the 55th score is meant, not the 56th."""
    p = torch.linspace(0.99, 0.01, 99, dtype=F64)
    probs = torch.stack([p, 1 - p], 1)
    assert conformal_threshold(probs, torch.zeros(99, dtype=torch.int64), 0.55) == float(1 - p[54])


def test_conformal_sets_cover_new_rows_at_the_promised_rate() -> None:
    level, rows, trials, fresh = 0.9, 30, 300, 60
    g = torch.Generator().manual_seed(11)
    covered = 0
    for _ in range(trials):
        logits = 2 * torch.randn(rows + fresh, 4, generator=g, dtype=F64)
        labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=g)[:, 0]
        probs = torch.softmax(3 * logits, 1)  # overconfident: the promise does not need calibration
        q = conformal_threshold(probs[:rows], labels[:rows], level)
        sets = prediction_sets(probs[rows:], q, torch.ones(fresh, 4, dtype=torch.bool))
        covered += int(sets.gather(1, labels[rows:, None]).sum())
    rate = covered / (trials * fresh)
    # Coverage given a calibration split is Beta(28, 3), sd 0.053; over 300 splits the mean has sd 0.0033, and
    # lies between 0.9 and 0.9 + 1/31.
    spread = 4 * stats.beta(28, 3).std() / math.sqrt(trials)
    assert level - spread <= rate <= level + 1 / (rows + 1) + spread


def test_prediction_sets() -> None:
    probs = torch.tensor([[0.95, 0.05, 0.0], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3]], dtype=F64)
    mask = torch.tensor([[True, True, False], [True, True, False], [True, True, True]])
    assert prediction_sets(probs, 0.5, mask).tolist() == [
        [True, False, False],
        [True, True, False],
        [False, False, False],
    ]
    # A threshold of 1 holds every possible class, and never an impossible one.
    assert torch.equal(prediction_sets(probs, 1.0, mask), mask)


class Given:
    """A fitted scikit-learn classifier that returns its input as the probabilities."""

    def __init__(self, classes: int) -> None:
        self.classes_ = np.arange(classes)
        self.n_features_in_ = classes

    def fit(self, *_: Any) -> Given:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, probs: Any) -> Any:
        return np.asarray(probs)

    def predict(self, probs: Any) -> Any:
        return np.asarray(probs).argmax(1)


def mapie_sets(
    score: str, calibration: tuple[torch.Tensor, torch.Tensor], probs: torch.Tensor, level: float, **params: Any
) -> tuple[float, torch.Tensor]:
    """Return MAPIE's threshold and sets; its uniform numbers, for calibration and for prediction, have the seed 0."""
    pytest.importorskip("mapie")
    from mapie.classification import SplitConformalClassifier

    peer = SplitConformalClassifier(
        Given(probs.shape[1]), confidence_level=level, conformity_score=score, prefit=True, random_state=0
    )
    peer.conformalize(calibration[0].numpy(), calibration[1].numpy())
    _, sets = peer.predict_set(probs.numpy(), conformity_score_params=params or None)
    return float(peer._mapie_classifier.conformity_score_function_.quantiles_[0]), torch.from_numpy(sets[:, :, 0])


def overconfident(rows: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities that are too sharp, and labels."""
    g = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(rows, classes, generator=g, dtype=F64)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=g)[:, 0]
    return torch.softmax(2 * logits, 1), labels


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("level", [0.8, 0.9])
def test_lac_sets_are_mapies(classes: int, level: float) -> None:
    calibration, (probs, _) = overconfident(120, classes, 1), overconfident(200, classes, 2)
    threshold, sets = mapie_sets("lac", calibration, probs, level)
    got = conformal_threshold(*calibration, level)
    assert got == pytest.approx(threshold, abs=1e-12)
    assert torch.equal(prediction_sets(probs, got, torch.ones_like(sets)), sets)


@pytest.mark.parametrize("classes", [3, 5])  # MAPIE refuses APS for two
@pytest.mark.parametrize("level", [0.8, 0.9])
def test_aps_sets_are_mapies(classes: int, level: float) -> None:
    """MAPIE draws U with the label's mass counted from above, and always calibrates with it."""
    calibration, (probs, _) = overconfident(120, classes, 1), overconfident(200, classes, 2)
    uniform = [1 - torch.from_numpy(np.random.RandomState(0).uniform(size=n)) for n in (120, 200)]
    got = aps_threshold(*calibration, level, uniform[0])
    threshold, randomised = mapie_sets("aps", calibration, probs, level, include_last_label="randomized")
    assert got == pytest.approx(threshold, abs=1e-12)
    every = torch.ones_like(randomised)
    assert torch.equal(aps_sets(probs, got, every, uniform[1]), randomised)
    # Its deterministic sets, at the same threshold: the labels until they reach it.
    _, including = mapie_sets("aps", calibration, probs, level, include_last_label=True)
    assert torch.equal(aps_sets(probs, got, every), including)


@given(rows=st.integers(1, 40), classes=st.integers(2, 5), level=st.floats(0.05, 0.99), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_deterministic_aps_is_the_papers_smallest_set(rows: int, classes: int, level: float, seed: int) -> None:
    """Label by label: its score is the mass before it, and a set the least prefix whose mass passes the threshold."""
    probs, labels = overconfident(rows, classes, seed)
    threshold = aps_threshold(probs, labels, level)
    before = []
    for p, label in zip(probs.tolist(), labels.tolist(), strict=True):
        before.append(sum(q for q in p if q > p[label]))
    rank = math.ceil((rows + 1) * level - 1e-9)
    assert threshold == pytest.approx(sorted(before)[rank - 1] if rank <= rows else 1.0, abs=1e-12)
    fresh, _ = overconfident(20, classes, seed + 1)
    sets = aps_sets(fresh, threshold, torch.ones_like(fresh, dtype=torch.bool))
    for p, got in zip(fresh.tolist(), sets.tolist(), strict=True):
        mass, wanted = 0.0, [False] * classes
        for k in sorted(range(classes), key=lambda k: -p[k]):
            if mass > threshold:
                break
            wanted[k], mass = True, mass + p[k]
        assert got == wanted
    assert sets.any(1).all()
    # Impossible classes stay out, even at a threshold of 1.
    mask = torch.arange(classes).expand(20, -1) < 2
    assert not aps_sets(fresh, 1.0, mask)[~mask].any()


@pytest.mark.parametrize("randomised", [False, True])
def test_aps_sets_cover_new_rows_at_the_promised_rate(randomised: bool) -> None:
    level, rows, trials, fresh = 0.9, 30, 300, 60
    rates = []
    for trial in range(trials):
        probs, labels = overconfident(rows + fresh, 4, trial)
        g = torch.Generator().manual_seed(trial)
        uniform = torch.rand(rows + fresh, generator=g, dtype=F64) if randomised else None
        first, last = (None, None) if uniform is None else (uniform[:rows], uniform[rows:])
        q = aps_threshold(probs[:rows], labels[:rows], level, first)
        sets = aps_sets(probs[rows:], q, torch.ones(fresh, 4, dtype=torch.bool), last)
        rates.append(empirical_coverage(sets, labels[rows:]))
    # As for the sets above; the deterministic scores have ties at 0, so they may cover more.
    spread = 4 * stats.beta(28, 3).std() / math.sqrt(trials)
    mean = sum(rates) / trials
    assert mean >= level - spread
    if randomised:
        assert mean <= level + 1 / (rows + 1) + spread


def test_empirical_coverage_counts_rows() -> None:
    sets = torch.tensor([[True, False], [True, True], [False, False], [False, True]])
    assert empirical_coverage(sets, torch.tensor([0, 1, 0, 0])) == 0.5
    with pytest.raises(DataError, match="bool"):
        empirical_coverage(sets.double(), torch.tensor([0, 1, 0, 0]))
    with pytest.raises(DataError, match="4"):
        empirical_coverage(sets, torch.tensor([0]))


def test_labels_without_rows_warn_and_a_full_split_does_not() -> None:
    warn_about_labels(torch.tensor([0, 1, 1]), 2, "calibration")  # warnings are errors here
    with pytest.warns(SmallCalibrationWarning, match=r"no row of 'calibration' has the labels \[2\]"):
        warn_about_labels(torch.tensor([0, 1, 1]), 3, "calibration")
    with pytest.warns(SmallCalibrationWarning, match="has the label 1"):
        warn_about_labels(torch.tensor([1, 1]), 2, "calibration")


def test_refusals() -> None:
    logits, labels, mask = torch.zeros(1, 2), torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(DataError, match="same shape"):
        fit_temperature(logits, labels, mask[:, :1])
    with pytest.raises(DataError, match="at least one row"):
        fit_temperature(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), torch.ones(0, 2, dtype=torch.bool))
    with pytest.raises(DataError, match="possible"):
        fit_temperature(logits, torch.tensor([1]), torch.tensor([[True, False]]))
    with pytest.raises(DataError, match="possible class"):
        temperature_probs(logits, 1.0, ~mask)
    with pytest.raises(DataError, match="integers"):
        fit_temperature(logits, torch.tensor([0.0]), mask)
    with pytest.raises(NonFiniteError):
        fit_temperature(logits * math.nan, labels, mask)
    with pytest.raises(NonFiniteError):
        prediction_sets(logits + math.inf, 0.5, mask)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="positive"):
            temperature_probs(logits, bad, mask)
    for bad in (0.0, 1.0):
        with pytest.raises(ConfigError, match="level"):
            conformal_threshold(logits, labels, bad)
        with pytest.raises(ConfigError, match="level"):
            aps_threshold(logits, labels, bad)
    for uniform in (torch.ones(2), torch.tensor([1.5])):
        with pytest.raises(DataError, match="uniform"):
            aps_sets(logits, 0.5, mask, uniform)
