"""Calibration: what is served is fitted on all rows, what is promised is set on fits that did not see the row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from laplora.decisions.conformal import fit_label_sets
from laplora.jacobians.blocks import Block
from laplora.linearised import contrasts, entropy
from laplora.metrics.scores import row_nll
from laplora.posterior.base import ProjectedJacobians
from laplora.predictive.cross_fitting import FOLDS, fold_rows
from laplora.predictive.kinds import fit_predictive_temperature
from laplora.prior.validation import choose_by_validation
from training.calibration.calibrate import (
    _PriorsWithout,
    calibrate,
    held_out_sureness,
    out_of_fold,
    predictive_of,
    take,
)
from training.calibration.outputs import Fitted, SplitOutputs
from training.calibration.projected import ProjectedSplit
from training.config import RunConfig

pytestmark = pytest.mark.slow

F64 = torch.float64
ROWS = 30


class OnePrecision:
    """A posterior of one block without curvature: the covariance is the Jacobians' product over the precision."""

    blocks = (Block("model.lora_A", "lora_A", 4, 2),)

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        return projected.rest[..., 0] / precisions[0]


def outputs() -> SplitOutputs:
    """Return an overconfident two-class model's calibration rows; fast's covariances are the exact ones and a tenth."""
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
    fitted = Fitted(posterior, prior, projected)
    return SplitOutputs(split, (fitted,), {}, distilled=1.1 * fitted.covariance())


@pytest.fixture
def config() -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "c",
            "data": {"dataset": "sst2"},
            "calibration": {"target_risk": 0.1},
            "predictives": {"laplace_temperature": False},
        }
    )


def with_label(found: SplitOutputs, row: int) -> SplitOutputs:
    """Return the outputs with one row's label turned round, and the served prior as it was."""
    labels = found.split.labels.clone()
    labels[row] = 1 - labels[row]
    return replace(found, split=replace(found.split, labels=labels))


def test_no_row_has_a_part_in_what_it_is_judged_by(config: RunConfig) -> None:
    found = outputs()
    before = out_of_fold(config, found)
    fold = next(held_out for _, held_out in fold_rows(ROWS, FOLDS, config.seed) if 7 in held_out)
    after = out_of_fold(config, with_label(found, 7))
    others = torch.ones(ROWS, dtype=torch.bool)
    others[fold] = False
    assert set(before) == {"map", "temperature", "fast", "laplace"}
    for name, predictive in before.items():
        assert torch.equal(predictive.probs[fold], after[name].probs[fold])
        # Every other row was fitted with it.
        moved = (predictive.probs != after[name].probs).any(1)
        assert bool(moved[others].all()) == (name != "map")


def test_served_is_the_fit_on_all_rows_and_thresholds_are_of_the_folds(config: RunConfig) -> None:
    found = outputs()
    split, held_out, got = found.split, out_of_fold(config, outputs()), calibrate(config, found)
    means, _ = found.moments("temperature")
    everything = fit_predictive_temperature(means, None, split.labels, split.class_mask)
    assert got.predictives["temperature"].temperature == everything
    assert got.record.folds == FOLDS
    for name, record in got.predictives.items():
        probs = held_out[name].probs
        assert record.nll == pytest.approx(float(row_nll(probs, split.labels).mean()))
        assert record.conformal == fit_label_sets("lac", probs, split.labels, 0.9)
        sure = held_out_sureness(config, found, name, _PriorsWithout(config, found))
        assert torch.equal(got.scores[name].score, sure.entropy)
        served = entropy(predictive_of(found, name, record.temperature).probs)
        assert set(sure.entropy.tolist()) <= set(served.tolist())
        assert torch.equal(got.scores[name].error, probs.argmax(1) != split.labels)
        if name != "fast":
            assert got.recommended.table[name]["nll"] == pytest.approx(record.nll)
    assert "fast" not in got.recommended.table


def test_each_fold_is_answered_under_the_prior_and_temperature_of_the_others(config: RunConfig) -> None:
    found = outputs()
    split, trained = found.split, found.fitted[0]
    held_out = out_of_fold(config, found)
    posterior: Any = trained.posterior
    for fitted, answered in fold_rows(ROWS, FOLDS, config.seed):
        labels, mask = split.labels[fitted], split.class_mask[fitted]
        prior = choose_by_validation(posterior, take(split.projected, fitted), labels, mask).prior
        own = replace(found, fitted=(replace(trained, prior=prior),))
        covariance = own.moments("laplace")[1]
        assert covariance is not None
        # fast: its own prediction, larger or smaller as the exact covariance is under the fold's prior.
        fast = found.moments("fast", [prior])[1]
        torch.testing.assert_close(fast, 1.1 * covariance)
        want = row_nll(held_out["laplace"].probs[answered], split.labels[answered]).mean()
        direct = predictive_of(own, "laplace", 1.0)
        assert float(row_nll(direct.probs[answered], split.labels[answered]).mean()) == pytest.approx(float(want))


def test_the_upper_bound_is_maps_for_every_predictive(config: RunConfig) -> None:
    bound = config.model_copy(
        update={"calibration": config.calibration.model_copy(update={"guarantee": "upper_bound", "target_risk": 0.4})}
    )
    got = calibrate(bound, outputs())
    rules = [record.thresholds.review for record in got.predictives.values() if record.thresholds]
    assert {(rule.score, rule.threshold) for rule in rules} == {("map_entropy", rules[0].threshold)}
    assert rules[0].threshold is not None
    for scores in got.scores.values():
        assert torch.equal(scores.score, got.scores["map"].score)
        assert torch.equal(scores.error, got.scores["map"].error)


def test_a_temperature_accepts_what_map_accepts_at_two_classes(config: RunConfig) -> None:
    """One number changes no order of two classes' entropies: folds of other temperatures must not either."""
    found = calibrate(config, outputs())
    map_rule, rule = (found.predictives[name].thresholds.review for name in ("map", "temperature"))  # type: ignore[union-attr]
    assert rule.accepted == map_rule.accepted > 0
    assert torch.equal(
        found.scores["map"].score.argsort(stable=True), found.scores["temperature"].score.argsort(stable=True)
    )
