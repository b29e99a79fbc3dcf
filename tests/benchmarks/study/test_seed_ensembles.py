"""Ensembles over the study's seeds: against numbers by hand, and on the published page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from study_pages import empty_docs, page_of, section
from synthetic_study import Task, write_study

from benchmarks.study.publish import publish
from benchmarks.study.results.predictions import Predictions, read_predictions
from benchmarks.study.results.records import read_records
from benchmarks.study.results.seed_ensembles import MEMBERS_OF, ensemble_probs, seed_ensembles
from laplora.decisions.temperature import temperature_penalty
from laplora.metrics.ranking import error_auroc
from laplora.metrics.scores import evaluate_probs

SEEDS = (0, 1, 2)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds of a task of up to three classes, with Laplace predictions and the splits' logits."""
    write_study(tmp_path / "runs", (Task("delta", rows=120, classes=3),), SEEDS)
    for seed in SEEDS:
        folder = folder_of(tmp_path / "runs", seed)
        tensors = load_file(folder / "predictions.safetensors")
        tensors["probs.laplace"] = tensors["probs.ekfac_validation_scalar"].clone()
        save_file(tensors, folder / "predictions.safetensors")
        result = json.loads((folder / "result.json").read_text())
        result["methods"]["laplace"] = result["methods"]["ekfac_validation_scalar"]
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
        logits = tensors["probs.map"].log().clamp_min(-1e4).float()
        mask, labels = tensors["class_mask"], tensors["labels"]
        write_split(folder, "test", logits, mask, labels)
        write_split(folder, "calibration", logits[::2], mask[::2], labels[::2])
    return tmp_path / "runs"


def folder_of(runs: Path, seed: int) -> Path:
    return runs / "study" / "delta" / str(seed)


def write_split(folder: Path, split: str, logits: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> None:
    tensors = {"logits": logits, "class_mask": mask, "labels": labels}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{split}.safetensors")


def read(runs: Path) -> list[Predictions]:
    return [read_predictions(folder_of(runs, seed)) for seed in SEEDS]


def test_an_ensemble_is_the_mean_of_its_members_probabilities(runs: Path) -> None:
    seeds = read(runs)
    found = ensemble_probs(seeds)
    assert set(found) == set(MEMBERS_OF)
    for method, member in (("seeds", "map"), ("seeds_laplace", "laplace")):
        mean = sum(p.probs[member] for p in seeds) / 3
        torch.testing.assert_close(found[method], mean)


def test_one_temperature_calibrates_the_average(runs: Path) -> None:
    seeds = read(runs)
    assert seeds[0].logits is not None
    labels, mask = seeds[0].labels, seeds[0].class_mask
    tempered = ensemble_probs(seeds)["seeds_temperature"]
    assert bool((tempered[~mask] == 0).all())
    stacked = torch.stack([p.logits["test"]["logits"].double() for p in seeds if p.logits]).masked_fill(
        ~mask, -torch.inf
    )
    # The calibration rows are every second test row: no other temperature is better there, its prior counted.
    rows = len(labels[::2])
    losses = {
        t: -float((stacked / t).softmax(2).mean(0)[::2].gather(1, labels[::2, None]).log().mean())
        for t in torch.logspace(-1, 1, 401).tolist()
    }
    best = min(losses, key=lambda t: losses[t] + temperature_penalty(math.log(t), rows))
    got = -float(tempered[::2].gather(1, labels[::2, None]).log().mean())
    assert got == pytest.approx(losses[best], abs=1e-4)


def test_scores_are_those_of_the_averaged_probabilities(runs: Path) -> None:
    seeds = read(runs)
    labels = seeds[0].labels
    records = {r["method"]: r for r in seed_ensembles(seeds)}
    for method, probs in ensemble_probs(seeds).items():
        record, whole = records[method], evaluate_probs(probs, labels, resamples=0)
        assert record["seeds"] == 3
        assert (record["nll"], record["ece"], record["auroc_error"]) == (whole.nll, whole.ece, whole.auroc_error)
        members = [evaluate_probs(p.probs[MEMBERS_OF[method]], labels, resamples=0) for p in seeds]
        assert record["member_nll"] == pytest.approx(sum(m.nll for m in members) / 3)
        alone = [evaluate_probs(p.probs["laplace"], labels, resamples=0).nll for p in seeds]
        value, low, high = record["against_laplace"]
        assert value == pytest.approx(record["nll"] - sum(alone) / 3)
        assert low <= value <= high
    # An average of probabilities is never worse in NLL than its members are on average (Jensen).
    for method in ("seeds", "seeds_laplace"):
        assert records[method]["nll"] < records[method]["member_nll"]
    each = torch.stack([p.probs["map"] for p in seeds])
    mean = each.mean(0)
    divergence = (each * (each / mean).log().nan_to_num(0)).sum(2).mean(0)
    assert records["seeds"]["auroc_disagreement"] == pytest.approx(error_auroc(divergence, mean.argmax(1) != labels))


def test_what_is_missing_leaves_its_ensemble_out(runs: Path) -> None:
    assert seed_ensembles(read(runs)[:1]) == []
    (folder_of(runs, 1) / "test.safetensors").unlink()
    assert [r["method"] for r in seed_ensembles(read(runs))] == ["seeds", "seeds_laplace"]


def test_one_temperature_needs_the_same_calibration_rows(runs: Path) -> None:
    folder = folder_of(runs, 2)
    other = load_file(folder / "calibration.safetensors")
    write_split(folder, "calibration", other["logits"].flip(0), other["class_mask"].flip(0), other["labels"].flip(0))
    assert "seeds_temperature" not in ensemble_probs(read(runs))


def test_the_page_shows_them(runs: Path, tmp_path: Path) -> None:
    docs = empty_docs(tmp_path)
    publish(runs, docs)
    found, table = read_records(docs / "results")["ensembles"], section(page_of(docs), "ensembles")
    assert [e["method"] for e in found] == sorted(MEMBERS_OF)
    for entry in found:
        assert f"| {entry['nll']:.3f} | {entry['member_nll']:.3f} |" in table
    assert "3 MAP, one temperature" in table
