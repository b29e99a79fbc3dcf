"""Calibration: what is served is fitted on all rows, what is promised is set on fits that did not see the row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from laplora.answers.review_scores import ReviewScores
from laplora.decisions.conformal import fit_label_sets
from laplora.decisions.temperature import fit_temperature
from laplora.experts.base import Labelled, Outputs
from laplora.fitting.adapted_experts import fit_answering
from laplora.fitting.calibrate import HELD_OUT, Calibrated, held_out_entropy, out_of_fold, predictive_of, prior_without
from laplora.fitting.evaluation import Gain, RowOutputs, RowProbs, gain_over_temperature
from laplora.fitting.projected import Fitted, ProjectedSplit, SplitOutputs
from laplora.head import fold_numbers
from laplora.jacobians.blocks import Block
from laplora.linearised import PosteriorPredictive, contrast_logits, contrasts, entropy
from laplora.metrics.scores import row_nll
from laplora.posterior.base import ProjectedJacobians
from laplora.predictive.cross_fitting import FOLDS, fold_rows
from laplora.predictive.kinds import PredictiveName
from laplora.prior.search import choose_by_validation
from laplora.settings import FitSettings

pytestmark = pytest.mark.slow

F64 = torch.float64
ROWS = 30


class OnePrecision:
    """A posterior of one block without curvature: the covariance is the Jacobians' product over the precision."""

    blocks = (Block("model.lora_A", "lora_A", 4, 2),)

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        return projected.rest[..., 0] / precisions[0]


@cache
def outputs() -> SplitOutputs:
    """Return an overconfident two-class model's calibration rows."""
    g = torch.Generator().manual_seed(0)
    truth = 3 * torch.randn(ROWS, 1, generator=g, dtype=F64)
    labels = torch.multinomial(torch.softmax(truth @ contrasts(2, F64).T, 1), 1, generator=g)[:, 0]
    size = torch.randn(ROWS, generator=g, dtype=F64).exp()[:, None, None, None]
    mean = 2.5 * truth
    projected = ProjectedJacobians(mean, torch.zeros(ROWS, 1, 0, dtype=F64), size)
    mask = torch.ones(ROWS, 2, dtype=torch.bool)
    mass = torch.rand(ROWS, generator=g, dtype=F64)
    split = ProjectedSplit(projected, mean @ contrasts(2, F64).T, mask, labels, mass)
    posterior: Any = OnePrecision()
    prior = choose_by_validation(posterior, projected, labels, mask).prior
    return SplitOutputs(split, Fitted(posterior, prior, projected))


SETTINGS = FitSettings.model_validate({"calibration": {"target_risk": 0.1}, "predictives": {"conditioned": False}})


def calibrate(
    settings: FitSettings, found: SplitOutputs, split_name: str = HELD_OUT
) -> tuple[Calibrated, dict[PredictiveName, ReviewScores]]:
    """Return what is recorded of the rows, and their scores, without labels that correct."""
    split, every = found.split, torch.ones(len(found.split), dtype=torch.bool)
    folds = fold_numbers(len(split), settings.calibration.folds, settings.seed, split.input_groups)
    labelled = Labelled(split.labels, split.class_mask, split.input_groups, folds, every)
    answering = fit_answering(settings, found, labelled, None, ("a", "b", "c"), split_name)
    assert list(answering.experts) == ["adapter", "temperature", "laplace"]
    return answering.calibrated, answering.scores


@cache
def calibrated() -> tuple[Calibrated, dict[PredictiveName, ReviewScores]]:
    return calibrate(SETTINGS, outputs())


@cache
def held_out() -> dict[PredictiveName, PosteriorPredictive]:
    return out_of_fold(SETTINGS, outputs(), prior_without(SETTINGS, outputs()), SETTINGS.predictives.names)


def test_no_row_has_a_part_in_what_it_is_judged_by() -> None:
    """The label of one row is turned round."""
    found = outputs()
    fold = next(answered for _, answered in fold_rows(ROWS, FOLDS, SETTINGS.seed) if 7 in answered)
    labels = found.split.labels.clone()
    labels[7] = 1 - labels[7]
    turned = replace(found, split=replace(found.split, labels=labels))
    after = out_of_fold(SETTINGS, turned, prior_without(SETTINGS, turned), SETTINGS.predictives.names)
    others = torch.ones(ROWS, dtype=torch.bool)
    others[fold] = False
    assert set(after) == {"map", "temperature", "laplace"}
    for name, predictive in held_out().items():
        assert torch.equal(predictive.probs[fold], after[name].probs[fold])
        # Every other row was fitted with it.
        moved = (predictive.probs != after[name].probs).any(1)
        assert bool(moved[others].all()) == (name != "map")
    # Each fold is answered under the prior of the others.
    split, trained = found.split, found.fitted
    for fitted, answered in fold_rows(ROWS, FOLDS, SETTINGS.seed):
        labels, mask = split.labels[fitted], split.class_mask[fitted]
        prior = choose_by_validation(trained.posterior, split.projected.take(fitted), labels, mask).prior
        direct = predictive_of(replace(found, fitted=replace(trained, prior=prior)), "laplace", 1.0)
        torch.testing.assert_close(held_out()["laplace"].probs[answered], direct.probs[answered])


def test_served_is_the_fit_on_all_rows_and_thresholds_are_of_the_folds() -> None:
    found, (got, scores) = outputs(), calibrated()
    split = found.split
    mean, _ = found.moments("temperature")
    everything = fit_temperature(contrast_logits(mean), split.labels, split.class_mask)
    assert got.predictives["temperature"].temperature == everything
    assert got.calibration.folds == FOLDS
    priors = prior_without(SETTINGS, found)
    for name, record in got.predictives.items():
        probs = held_out()[name].probs
        assert record.nll == pytest.approx(float(row_nll(probs, split.labels).mean()))
        assert record.conformal == fit_label_sets("lac", probs, split.labels, 0.9)
        total = held_out_entropy(SETTINGS, found, name, priors)
        assert torch.equal(scores[name].score, total)
        served = entropy(predictive_of(found, name, record.temperature).probs)
        assert set(total.tolist()) <= set(served.tolist())
        assert torch.equal(scores[name].error, probs.argmax(1) != split.labels)
        assert got.recommended.table[name]["nll"] == pytest.approx(record.nll)
    # One number changes no order of two classes' entropies: folds of other temperatures must not either.
    map_rule, rule = (got.predictives[name].thresholds.review for name in ("map", "temperature"))  # type: ignore[union-attr]
    assert rule.accepted == map_rule.accepted > 0
    assert torch.equal(scores["map"].score.argsort(stable=True), scores["temperature"].score.argsort(stable=True))


def test_the_upper_bound_is_maps_for_every_predictive() -> None:
    strict = SETTINGS.calibration.model_copy(update={"guarantee": "upper_bound", "target_risk": 0.4})
    got, scores = calibrate(SETTINGS.model_copy(update={"calibration": strict}), outputs())
    rules = [record.thresholds.review for record in got.predictives.values() if record.thresholds]
    assert {(rule.score, rule.threshold) for rule in rules} == {("map_entropy", rules[0].threshold)}
    assert rules[0].threshold is not None
    for of_name in scores.values():
        assert torch.equal(of_name.score, scores["map"].score)
        assert torch.equal(of_name.error, scores["map"].error)


@pytest.mark.parametrize("seed", [19, 26, 32])
def test_a_prior_at_the_end_of_its_search_recommends_nothing_of_the_posterior(seed: int) -> None:
    """Labels of a calibrated model, drawn so that any variance hurts: ``laplace`` is MAP to rounding, and dearer."""
    found, scale = outputs(), 0.4
    split, trained = found.split, found.fitted
    projected = replace(split.projected, contrast_mean=scale * split.projected.contrast_mean)
    logits = scale * split.logits
    labels = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    split = replace(split, projected=projected, logits=logits, labels=labels)
    choice = choose_by_validation(trained.posterior, projected, labels, split.class_mask)
    assert choice.at_bound
    at_bound = replace(found, split=split, fitted=replace(trained, prior=choice.prior, projected=projected))
    assert calibrate(SETTINGS, at_bound)[0].recommended.predictive in ("map", "temperature")


TEMPERATURES: dict[PredictiveName, float] = {"map": 1.0, "temperature": 2.5, "laplace": 1.0}


def probs_of(found: SplitOutputs, temperatures: Mapping[PredictiveName, float]) -> RowProbs:
    return RowProbs.of(RowOutputs(found, Outputs(found.split.class_mask)), temperatures)


def losses(name: PredictiveName) -> torch.Tensor:
    return row_nll(predictive_of(outputs(), name, TEMPERATURES[name]).probs, outputs().split.labels)


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("name", ["map", "laplace"])
def test_the_gain_is_the_difference_of_the_nlls_within_its_interval(name: PredictiveName, together: int) -> None:
    """Of three labels of an input, and of three rows of a group, the interval is that of the ten units' means."""
    groups = torch.arange(30) // 3 if together == 1 else None
    found = replace(outputs(), split=replace(outputs().split, together=together, groups=groups))
    gain = gain_over_temperature(probs_of(found, TEMPERATURES), name)
    assert gain is not None
    differences = (losses(name) - losses("temperature")).view(-1, 3).mean(1)
    assert gain.difference == pytest.approx(float(differences.mean()))
    error = float(differences.std()) / len(differences) ** 0.5
    # A bootstrap's percentiles are near the normal ones: within a third on 30 rows.
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * error, rel=1 / 3)
    assert gain.low < gain.difference < gain.high


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-0.2, -0.01, "better"), (0.01, 0.2, "worse"), (-0.1, 0.1, "within noise")]
)
def test_an_interval_that_excludes_0_decides(low: float, high: float, verdict: str) -> None:
    assert str(Gain("laplace", (low + high) / 2, low, high)).endswith(verdict)
    for name, temperatures in (("temperature", TEMPERATURES), ("map", {"map": 1.0})):
        assert gain_over_temperature(probs_of(outputs(), temperatures), name) is None  # type: ignore[arg-type]
