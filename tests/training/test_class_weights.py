"""Weights of classes: the loss, its curvature, and that they change what a misfit costs, not what answers mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import job, sentiment_config, sentiment_rows, write_rows

from laplora.errors import ConfigError
from laplora.fitting.fit import check_class_weights
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks
from laplora.linearised import class_weighted_hessian, class_weighted_log_likelihood, contrasts
from laplora.posterior.file import read_posterior
from laplora.settings import FitSettings
from training.config import load_config
from training.workspace.results import load_trained
from training.workspace.runtime import open_run

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=torch.float64)


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and class mask of five rows of two to four possible classes."""
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(4)[None] < torch.tensor([2, 3, 4, 4, 2])[:, None]
    return logits, torch.tensor([1, 2, 3, 0, 0]), mask


def test_the_curvature_is_the_hessian_of_the_loss_that_is_trained() -> None:
    """By automatic differentiation in float64, row by row, in the contrasts."""
    logits, labels, mask = rows()
    q = contrasts(4)
    found = class_weighted_hessian(logits, labels, mask, WEIGHTS)
    for row in range(len(logits)):
        one = slice(row, row + 1)

        def loss(z: torch.Tensor, one: slice = one) -> torch.Tensor:
            return -class_weighted_log_likelihood((q @ z)[None], labels[one], mask[one], WEIGHTS)[0]

        hessian = torch.autograd.functional.hessian(loss, logits[row] @ q)
        torch.testing.assert_close(found[row], hessian, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.4, 1.0, 9.0), (5.0, 0.1, 1.0)])
def test_the_best_logits_have_the_frequencies_of_the_labels(weights: tuple[float, ...]) -> None:
    """Whatever the weights: 70, 20 and 10 of 100 labels. Plain weighting would answer with the shares of ``w p``."""
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    mask = torch.ones(100, 3, dtype=torch.bool)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -class_weighted_log_likelihood(logits.expand(100, 3), labels, mask, torch.tensor(weights)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(
        logits.detach().softmax(0), torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("settings", "classes", "likelihood", "message"),
    [
        ({"class_weights": (1.0, 2.0)}, 3, "categorical", "2 weights of 3 classes"),
        ({"class_weights": (1.0, 2.0)}, 2, "bernoulli", "right or wrong on their own"),
        ({"class_weights": (1.0,) * 20}, 20, "categorical", "raise the limit, or leave them out"),
    ],
)
def test_what_cannot_be_weighed(settings: dict[str, Any], classes: int, likelihood: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_class_weights(FitSettings(**settings), classes, likelihood)


def test_the_posterior_of_a_run_is_that_of_the_weighted_loss(
    tmp_path: Path, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every label's rows count the same together, and all rows as often as they are.

    Variances of the file's posterior against a dense inverse, to float32; its likelihood is the weighted one.
    """
    by_label = {name: [row for row in sentiment_rows() if row["label"] == name] for name in ("negative", "positive")}
    rare = write_rows(tmp_path / "rare.jsonl", by_label["negative"] + by_label["positive"][2::3])
    data = {"dataset": "file", "path": str(rare), "template": "sentiment", "labels": list(by_label)}
    file = sentiment_config(
        tmp_path,
        tiny_base_folder,
        data=data | {"train": 30, "calibration": 20, "stratify": True},
        optimizer={"learning_rate": 1e-2, "steps": 12, "batch_size": 6, "class_weights": "balanced"},
        laplace={"rank": 100, "joint_rank": 100, "batch_size": 8},
    )
    assert job("finetune", file, "optimizer.class_weights={neutral: 2}") == 1
    assert "optimizer.class_weights names ['neutral'], which are not among" in capsys.readouterr().err
    heavier = open_run(load_config(file, ["optimizer.class_weights={positive: 3}"])).config.fit.class_weights
    assert heavier[1] == pytest.approx(3 * heavier[0], rel=1e-5)
    assert job("run", file) == 0
    run = open_run(load_config(file))
    manifest = json.loads((run.config.artifact_dir / "manifest.json").read_text())
    given, rows = manifest["config"]["optimizer"]["class_weights"], manifest["data"]["classes"]["train"]
    assert {label: given[label] * rows[label] for label in rows} == {label: pytest.approx(15) for label in rows}
    assert rows["negative"] > 2 * rows["positive"]
    model = load_trained(run)
    blocks = covered_blocks(model, run.readout)
    labels = torch.tensor([example.label for example in run.splits.train])
    weights = torch.tensor(run.config.fit.class_weights, dtype=torch.float64)
    batch = run.collate(run.encode(run.splits.train))
    found = contrast_jacobians(model, batch, run.readout, blocks)
    jacobian = torch.cat([one.jacobian.flatten(2) for one in found.blocks], 2).double()[:, 0]
    hessian = class_weighted_hessian(found.logits, labels, batch.class_mask, weights)[:, 0, 0]
    root = hessian.sqrt()[:, None] * jacobian
    across, dual = jacobian @ root.T, 10.0 * torch.eye(len(root), dtype=torch.float64) + root @ root.T
    dense = (jacobian.square().sum(1) - ((across @ torch.linalg.inv(dual)) * across).sum(1)) / 10.0
    posterior = read_posterior(run.folder / "laplace" / "posterior.safetensors", blocks)
    covariance = posterior.covariance_of(found, torch.full((len(blocks),), 10.0, dtype=torch.float64))
    torch.testing.assert_close(covariance[:, 0, 0].double(), dense, rtol=1e-3, atol=1e-8)
    recorded = json.loads((run.folder / "laplace" / "fit.json").read_text())["log_likelihood"]
    likelihood = class_weighted_log_likelihood(found.logits, labels, batch.class_mask, weights)
    assert recorded == pytest.approx(float(likelihood.sum()), rel=1e-4)
