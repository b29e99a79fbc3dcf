"""A run whose rows have soft labels: training, fit and report by cross-entropy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import job, sentiment_config, sentiment_rows, write_rows

from laplora.artifact.head_files import read_experts, read_kept_rows
from laplora.artifact.manifest import EXPERTS, ROWS
from laplora.data.labelled import Task
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks
from laplora.linearised import cross_entropy, log_likelihood
from laplora.predictor import Predictor
from laplora.prompts.examples import label_tensor
from training.config import load_config
from training.data.adapter_rows import adapter_rows, labels_of_rows, template_of
from training.workspace.results import load_trained
from training.workspace.runtime import open_run
from training.workspace.targets import target_loss


def soft(row: dict[str, Any], share: float) -> dict[str, Any]:
    other = {"negative": "positive", "positive": "negative"}[row["label"]]
    return row | {"label": {row["label"]: share, other: 1 - share}}


def test_the_loss_is_the_expectation_over_the_label_and_has_a_gradient_where_a_label_is_impossible() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.tensor([[True, True, False], [True] * 3, [True] * 3, [True, True, False]])
    labels = torch.tensor([[0.6, 0.4, 0], [0.1, 0.2, 0.7], [0, 1, 0], [0.5, 0.5, 0]])
    each = torch.stack(
        [target_loss(logits[[row]], torch.tensor([k]), mask[[row]]) for row in range(4) for k in range(3)]
    )
    found = target_loss(logits, labels, mask)
    expected = (each.view(4, 3).masked_fill(~mask, 0) * labels).sum() / 4
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(gradient, (logits.masked_fill(~mask, -torch.inf).softmax(1) - labels) / 4)


def test_a_run_of_soft_labels_is_fitted_and_reported_by_cross_entropy(tmp_path: Path, tiny_base_folder: Path) -> None:
    rows = [soft(row, 0.9 if i % 3 else 0.6) if i % 5 else row for i, row in enumerate(sentiment_rows())]
    data = {"dataset": "file", "path": str(write_rows(tmp_path / "soft.jsonl", rows)), "template": "sentiment"}
    file = sentiment_config(
        tmp_path,
        tiny_base_folder,
        data=data | {"labels": ["negative", "positive"], "train": 30, "calibration": 24},
        optimizer={"learning_rate": 1e-2, "steps": 12, "batch_size": 6},
        laplace={"rank": 8, "joint_rank": 8, "batch_size": 8, "prior": "validation"},
        calibration={"ordered": True},
    )
    assert job("run", file) == 0
    run = open_run(load_config(file))
    targets = label_tensor(run.splits.train, 2)
    assert sorted(set(targets.flatten().tolist()))[-2:] == [0.9, 1.0]
    batch = run.collate(run.encode(run.splits.train))
    found = contrast_jacobians(load_trained(run), batch, run.readout, covered_blocks(load_trained(run), run.readout))
    recorded = json.loads((run.folder / "laplace" / "fit.json").read_text())["log_likelihood"]
    likelihood = log_likelihood("categorical", found.logits, targets, batch.class_mask)
    assert recorded == pytest.approx(float(likelihood.sum()), rel=1e-4)
    artifact = Predictor.load(run.config.artifact_dir, device="cpu", cache_dir=tmp_path / "cache").artifact
    kept = read_kept_rows(
        artifact.path / ROWS, artifact.manifest, read_experts(artifact.path / EXPERTS, artifact.manifest)
    )
    calibration = label_tensor(run.splits.calibration, 2)
    torch.testing.assert_close(kept.labelled.labels[kept.labelled.honest], calibration)
    at_map = kept.log_probs["adapter"][kept.labelled.honest]
    record = artifact.manifest.predictives["map"]
    assert record.nll == pytest.approx(float(cross_entropy(at_map, calibration).mean()), abs=1e-5)
    assert record.thresholds.errors == int((at_map.argmax(1) != calibration.argmax(1)).sum())
    report = json.loads((run.folder / "report" / "evaluation.json").read_text())
    assert 0 < report["map"]["kl"] < report["map"]["nll"]
    assert artifact.manifest.calibration.ordered
    assert report["map"]["mae"] == pytest.approx(1 - report["map"]["accuracy"])
    assert report["map"]["rps"] == pytest.approx(report["map"]["brier"] / 2)
    assert "KL ↓ | MAE ↓ | RPS ↓" in (run.folder / "report" / "results.md").read_text()


def test_rows_of_an_adapter_that_was_trained_elsewhere_keep_their_probabilities(tmp_path: Path) -> None:
    given = [{"text": "a", "label": {"good": 0.75, "bad": 0.25}}, {"text": "b", "label": "odd"}]
    path, task = (
        write_rows(tmp_path / "soft.jsonl", given),
        Task("given", template_of("sentiment"), ("bad", "good", "odd")),
    )
    assert labels_of_rows(path, "label") == task.labels
    (tmp_path / "soft.csv").write_text('text,label\na,"{""good"": 0.75, ""bad"": 0.25}"\nb,odd\n')
    assert labels_of_rows(tmp_path / "soft.csv", "label") == task.labels
    assert [row["label"] for row in adapter_rows(path, task, "label")] == [{"bad": 0.25, "good": 0.75}, "odd"]
    numbered = write_rows(tmp_path / "numbers.jsonl", [{"text": "a", "label": {"1": 0.75, "0": 0.25}}])
    (row,) = adapter_rows(numbered, task, "label", of_head=True)
    assert row["label"] == {"bad": 0.25, "good": 0.75}
