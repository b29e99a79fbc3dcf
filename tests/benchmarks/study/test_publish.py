"""What the study publishes: pooled scores by hand, records, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic_study import BASE, CONFIGURATION, METHODS, TASKS, empty_docs, page_of, write_seed, write_study

from benchmarks.study.pages.tables import page_tables
from benchmarks.study.publish import publish, score_study
from benchmarks.study.results.records import Records, read_records, tables_of
from benchmarks.study.results.scores import pooled_mean
from laplora.errors import DataError
from laplora.metrics.scores import evaluate_probs


@pytest.fixture(scope="module")
def published(docs: Path) -> Records:
    return read_records(docs / "results")


def test_pooled_means_draw_a_rows_seeds_together() -> None:
    one = torch.randn(200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    value, low, high = pooled_mean(one[None])
    assert value == pytest.approx(float(one.mean()))
    # 1.96 standard errors of a mean on either side, within the percentile's error at 2,000 resamples (about 5 %).
    assert high - low == pytest.approx(2 * 1.96 * float(one.std()) / 200**0.5, rel=0.1)
    # The same rows under three identical seeds hold no more information than under one.
    assert pooled_mean(one.repeat(3, 1)) == pytest.approx((value, low, high))
    # A difference by rounding alone is none.
    assert pooled_mean(torch.full((1, 50), -1e-15, dtype=torch.float64)) == (0, 0, 0)


def test_published_scores_are_those_of_the_predictions_to_six_digits(published: Records, tmp_path: Path) -> None:
    scores = published["scores"]
    assert len(scores) == len(TASKS) * 2 * len(METHODS) - sum(len(task.missing) for task in TASKS)
    assert {(s["task"], s["method"]) for s in scores if s["recommended"]} == {(t.name, t.recommended) for t in TASKS}
    write_seed(tmp_path, TASKS[1], 0)
    tensors = load_file(tmp_path / "predictions.safetensors")
    record = next(s for s in scores if (s["task"], s["seed"], s["method"]) == ("beta", 0, "laplace"))
    expected = evaluate_probs(tensors["probs.laplace"], tensors["labels"], tensors["score.laplace"], resamples=0)
    for name in ("nll", "ece", "accuracy", "brier", "auroc_error"):
        assert record[name] == float(f"{getattr(expected, name):.6g}")


def test_comparisons_cover_the_seeds_that_have_both(published: Records) -> None:
    compared = {(c["task"], c["method"], c["against"]): c for c in published["comparisons"]}
    assert compared["beta", "ensemble", "map"]["seeds"] == 1
    assert compared["beta", "temperature", "map"]["seeds"] == 2
    assert ("beta", "laplace_evidence", "map") not in compared
    nll = {(s["seed"], s["method"]): s["nll"] for s in published["scores"] if s["task"] == "alpha"}
    one = compared["alpha", "ensemble", "temperature"]
    mean, reference = (sum(nll[s, m] for s in (0, 1)) / 2 for m in ("ensemble", "temperature"))
    # Both sides are rounded at the sixth digit of numbers below 1.
    assert one["difference"] == pytest.approx(mean - reference, abs=2e-6)
    assert one["low"] < one["difference"] < one["high"]


def test_publishing_twice_gives_the_same_bytes_and_another_study_replaces_it(docs: Path, tmp_path: Path) -> None:
    again = empty_docs(tmp_path)
    publish(docs.parent / "study", again)
    for path in docs.rglob("*.*"):
        assert (again / path.relative_to(docs)).read_bytes() == path.read_bytes(), path.name
    write_study(tmp_path / "other", TASKS[:1], (5,))
    publish(tmp_path / "other", again)
    assert {(s["task"], s["seed"]) for s in read_records(again / "results")["scores"]} == {("alpha", 5)}
    assert "| beta |" not in page_of(again)


def test_folders_are_neither_published_nor_part_of_the_digest(tmp_path: Path) -> None:
    """The configuration names its base model by a folder, which is another one on another machine."""
    models = {"here": "/models/tiny", "there": "/x/tiny", "other": "/x/big"}
    for name, model in models.items():
        configuration = CONFIGURATION | {"base": BASE | {"model": model}}
        write_study(tmp_path / name, TASKS[:1], (0,), configuration=configuration)
        write_study(tmp_path / name, TASKS[:1], (1,), configuration=configuration, hardware="one GPU")
    here, there, other = (score_study(tmp_path / name) for name in models)
    assert here["tasks"] == there["tasks"]
    assert here["tasks"][0]["digest"] != other["tasks"][0]["digest"]
    assert "/models" not in json.dumps(here)
    setup = page_tables(tables_of(here))["setup"]
    assert "| tiny, nf4 |" in setup
    assert "Hardware: one GPU; or processor a processor, cores 2." in setup


def test_seeds_that_cannot_be_pooled_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path, TASKS[:1], (0,))
    write_study(tmp_path, TASKS[:1], (1,), steps=128)
    with pytest.raises(DataError, match=r"alpha: seeds \[0, 1\] differ"):
        score_study(tmp_path)
    write_study(tmp_path, TASKS[:1])
    file = tmp_path / "alpha" / "1" / "predictions.safetensors"
    tensors = load_file(file)
    tensors["labels"][0] = 1 - tensors["labels"][0]
    save_file(tensors, file)
    with pytest.raises(DataError, match="test rows"):
        score_study(tmp_path)
    write_seed(file.parent, TASKS[0], 0)
    with pytest.raises(DataError, match="same seed"):
        score_study(tmp_path)


def test_unfinished_seeds_are_passed_over_and_nothing_finished_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path, TASKS[:1])
    (tmp_path / "alpha" / "1" / "result.json").unlink()
    assert score_study(tmp_path)["tasks"][0]["seeds"] == [0]
    (tmp_path / "alpha" / "0" / "predictions.safetensors").unlink()
    with pytest.raises(DataError, match="no finished task"):
        score_study(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recommended": "nothing"}, "the recommended nothing"),
        ({"rows": 17}, "17 rows expected"),
        ({"methods": {"map": {"title": "MAP"}}}, r"methods\.map\.family"),
        ({"methods": {"map": {"title": "MAP", "family": "map", "seconds": 1, "bytes": 1}}}, "unknown"),
        (None, r"predictions\.safetensors cannot be used"),
    ],
)
def test_damaged_inputs_are_refused_by_name(tmp_path: Path, changes: dict[str, Any] | None, message: str) -> None:
    write_study(tmp_path, TASKS[:1], (0,), **(changes or {}))
    if changes is None:
        (tmp_path / "alpha" / "0" / "predictions.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match=message):
        score_study(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"scores": []}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(DataError, match=r"study\.json: .*: publish the study again"):
        read_records(tmp_path)


def test_a_page_without_markers_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_study(tmp_path / "study", TASKS[:1], (0,))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text("# Results\n")
    with pytest.raises(DataError, match="one pair of markers"):
        publish(tmp_path / "study", tmp_path / "docs")
    assert not (tmp_path / "docs" / "results").exists()
