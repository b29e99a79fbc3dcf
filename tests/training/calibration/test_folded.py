"""The posteriors of several folds as one: each row's covariance is its fold's, in any order and under any prior."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from test_calibrate import SETTINGS, calibrate, outputs

from laplora.fitting.calibrate import OUT_OF_FOLD, out_of_fold, prior_without
from laplora.fitting.projected import Fitted, SplitOutputs
from laplora.jacobians.blocks import Block
from laplora.posterior.base import ProjectedJacobians
from laplora.predictive.cross_fitting import fold_rows
from laplora.predictive.kinds import PredictiveName
from training.calibration.fold_adapters import FoldedPosterior, fold_together

F64 = torch.float64
PLACES = (torch.tensor([1, 4, 6]), torch.tensor([0, 3]), torch.tensor([2, 5, 7, 8]))


@dataclass(frozen=True)
class Kept:
    """A posterior whose covariance is the Gram matrix of as many kept coordinates as it has scales."""

    scales: torch.Tensor
    blocks = (Block("model.lora_A", "lora_A", 4, 2),)
    structure = "joint_core"

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        kept = projected.kept * (self.scales + precisions[0]).rsqrt()
        return kept @ kept.mT + projected.rest[..., 0] / precisions[0]


def problem() -> tuple[list[Any], list[ProjectedJacobians], FoldedPosterior, ProjectedJacobians]:
    """Return three folds, apart and together, which keep 3, 5 and 2 coordinates of rows of two contrasts."""
    g = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    posteriors: list[Any] = [Kept(drawn(count).exp()) for count in (3, 5, 2)]
    parts = [
        ProjectedJacobians(drawn(len(rows), 2), drawn(len(rows), 2, len(p.scales)), drawn(len(rows), 2, 2, 1))
        for rows, p in zip(PLACES, posteriors, strict=True)
    ]
    return posteriors, parts, *fold_together(posteriors, parts, PLACES)


@pytest.mark.parametrize("rows", [list(range(9)), [8, 0, 6, 3], [4, 1]], ids=["all", "some", "one fold's"])
def test_a_rows_covariance_is_that_of_its_folds_posterior(rows: list[int]) -> None:
    posteriors, parts, folded, together = problem()
    precisions = torch.tensor([0.1], dtype=F64)
    found = folded.covariance(together.take(torch.tensor(rows)), precisions)
    for row, covariance in zip(rows, found, strict=True):
        (fold,) = [number for number, places in enumerate(PLACES) if row in places]
        place = PLACES[fold].tolist().index(row)
        expected = posteriors[fold].covariance(parts[fold], precisions)[place]
        torch.testing.assert_close(covariance, expected, rtol=1e-12, atol=0)
        assert torch.equal(together.contrast_mean[row], parts[fold].contrast_mean[place])


def test_a_fold_of_adapters_is_judged_by_the_others() -> None:
    """Where each fold has an adapter of its own, prior and temperature of a fold come from the other adapters' rows."""
    folds, found = 3, outputs()
    settings = SETTINGS.model_copy(update={"calibration": SETTINGS.calibration.model_copy(update={"folds": folds})})
    trained, split = found.fitted, found.split
    places = [answered for _, answered in fold_rows(len(split), folds, settings.seed)]
    adapters: list[Any] = [trained.posterior] * folds
    posterior, projected = fold_together(adapters, [split.projected.take(rows) for rows in places], places)
    fitted = Fitted(posterior, trained.prior, projected)
    folded = replace(found, split=replace(split, projected=projected), fitted=fitted)
    assert torch.equal(folded.fitted.covariance(), trained.covariance())

    def probs(of: SplitOutputs) -> dict[PredictiveName, torch.Tensor]:
        answers = out_of_fold(settings, of, prior_without(settings, of), settings.predictives.names)
        return {name: predictive.probs for name, predictive in answers.items()}

    before = probs(folded)
    for name, of_one_adapter in probs(found).items():
        assert torch.equal(before[name], of_one_adapter)
    labels = split.labels.clone()
    labels[places[0]] = 1 - labels[places[0]]
    after = probs(replace(folded, split=replace(folded.split, labels=labels)))
    assert all(torch.equal(before[name][places[0]], after[name][places[0]]) for name in before)
    assert not torch.equal(before["laplace"], after["laplace"])
    record, _ = calibrate(settings, folded, split_name=OUT_OF_FOLD)
    assert (record.calibration.split, record.calibration.folds) == ("out_of_fold", folds)
