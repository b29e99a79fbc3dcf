"""Ensembles over the study's seeds, against numbers by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic_study import Task, write_study

from benchmarks.study.results.predictions import Predictions, read_predictions
from benchmarks.study.results.seed_ensembles import MEMBERS_OF, ensemble_probs, seed_ensembles
from laplora.decisions.temperature import temperature_penalty
from laplora.metrics.ranking import error_auroc
from laplora.metrics.scores import evaluate_probs


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three seeds of a task of up to three classes, with the splits' logits: calibration rows are every second one."""
    write_study(tmp_path, (Task("delta", rows=120, classes=3),), (0, 1, 2))
    folders = sorted((tmp_path / "delta").iterdir())
    for folder in folders:
        tensors = load_file(folder / "predictions.safetensors")
        rows = {"logits": tensors["probs.map"].log().clamp_min(-1e4).float()}
        rows |= {name: tensors[name] for name in ("class_mask", "labels")}
        save_file(rows, folder / "test.safetensors")
        save_file({name: t[::2].contiguous() for name, t in rows.items()}, folder / "calibration.safetensors")
    return folders


def read(folders: list[Path]) -> list[Predictions]:
    return [read_predictions(folder) for folder in folders]


def test_one_temperature_calibrates_the_average(folders: list[Path]) -> None:
    seeds = read(folders)
    labels, mask = seeds[0].labels, seeds[0].class_mask
    tempered = ensemble_probs(seeds)["seeds_temperature"]
    assert bool((tempered[~mask] == 0).all())
    stacked = torch.stack([p.logits["test"]["logits"].double() for p in seeds]).masked_fill(~mask, -torch.inf)
    # No other temperature is better on the calibration rows, its prior counted.
    rows = len(labels[::2])
    losses = {
        t: -float((stacked / t).softmax(2).mean(0)[::2].gather(1, labels[::2, None]).log().mean())
        for t in torch.logspace(-1, 1, 401).tolist()
    }
    best = min(losses, key=lambda t: losses[t] + temperature_penalty(math.log(t), rows))
    fitted = -float(tempered[::2].gather(1, labels[::2, None]).log().mean())
    assert fitted == pytest.approx(losses[best], abs=1e-4)


def test_scores_are_those_of_the_averaged_probabilities(folders: list[Path]) -> None:
    seeds = read(folders)
    labels = seeds[0].labels
    records = {r["method"]: r for r in seed_ensembles(seeds)}
    assert set(records) == set(MEMBERS_OF)
    for method, probs in ensemble_probs(seeds).items():
        record, whole = records[method], evaluate_probs(probs, labels, resamples=0)
        assert (record["nll"], record["ece"], record["auroc_error"]) == (whole.nll, whole.ece, whole.auroc_error)
        members = [p.probs[MEMBERS_OF[method]] for p in seeds]
        if method != "seeds_temperature":
            torch.testing.assert_close(probs, sum(members) / 3)
        nlls, laplace = (
            [evaluate_probs(p, labels, resamples=0).nll for p in each]
            for each in (members, [p.probs["laplace"] for p in seeds])
        )
        assert record["member_nll"] == pytest.approx(sum(nlls) / 3)
        value, low, high = record["against_laplace"]
        assert low <= value <= high
        assert value == pytest.approx(record["nll"] - sum(laplace) / 3)
    each = torch.stack([p.probs["map"] for p in seeds])
    mean = each.mean(0)
    divergence = (each * (each / mean).log().nan_to_num(0)).sum(2).mean(0)
    assert records["seeds"]["auroc_disagreement"] == pytest.approx(error_auroc(divergence, mean.argmax(1) != labels))


def test_what_is_missing_leaves_its_ensemble_out(folders: list[Path]) -> None:
    assert seed_ensembles(read(folders)[:1]) == []
    other = load_file(folders[2] / "calibration.safetensors")
    save_file({name: t.flip(0).contiguous() for name, t in other.items()}, folders[2] / "calibration.safetensors")
    assert "seeds_temperature" not in ensemble_probs(read(folders)), "other calibration rows"
    (folders[1] / "test.safetensors").unlink()
    assert [r["method"] for r in seed_ensembles(read(folders))] == ["seeds", "seeds_laplace"]
