"""A run that trains on all labels: what it serves and what judges a row; a stopped one ends like one that never was."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from alike_runs import read
from safetensors.torch import load_file
from tiny_runs import (
    FinishedRun,
    adapter,
    copy_run,
    interrupted_at,
    job,
    run_once,
    same,
    sentiment_config,
    sentiment_rows,
    write_rows,
)

import laplora
from laplora.fitting import passes
from laplora.fitting.projected import split_of
from laplora.fitting.saving import read_fit
from laplora.predictor import Predictor
from training.calibration import fold_adapters as fold_adapters_module
from training.config import load_config
from training.workspace.folds import fold_runs
from training.workspace.runtime import open_run

pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")

FOLDS, ROWS, TEST = 2, 32, 16
DATA = {"dataset": "file", "template": "sentiment", "labels": ["negative", "positive"]}
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.1}
STEPS = {"learning_rate": 1e-2, "steps": 16, "batch_size": 4, "checkpoint_every": 4}


def cross_fit_config(folder: Path, base: Path) -> Path:
    """Write the configuration: 20 training and 12 calibration rows, which are one."""
    file = str(write_rows(folder / "reviews.jsonl", sentiment_rows()))
    return sentiment_config(
        folder,
        base,
        name="tiny-cross-fit",
        data=DATA | {"path": file, "train": 20, "calibration": ROWS - 20, "test": TEST},
        adapter=DROPOUT,
        optimizer=STEPS,
        calibration={"rows": "cross_fit", "folds": FOLDS},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> FinishedRun:
    return run_once(tmp_path_factory, "cross-fit", tiny_base_folder, cross_fit_config)


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> Path:
    """The configuration file of a copy of it."""
    return copy_run(finished, cross_fit_config(tmp_path, finished.base))


def test_every_label_trains_what_is_served_and_calibrates_it(finished: FinishedRun) -> None:
    run, folder = open_run(finished.config), finished.config.run_dir
    assert len(run.splits.train) == ROWS
    assert not run.splits.calibration
    assert json.loads((folder / "laplace" / "fit.json").read_text())["train_rows"] == ROWS
    together = split_of(load_file(folder / "laplace" / "calibration.safetensors"))
    assert together.labels.tolist() == [example.label for example in run.splits.train]
    manifest = Predictor.load(finished.artifact, device="cpu").artifact.manifest
    calibration = manifest.calibration
    assert (calibration.split, calibration.rows, calibration.folds) == ("out_of_fold", ROWS, FOLDS)
    assert manifest.data["rows"] == {"train": ROWS, "calibration": 0, "test": TEST}
    assert manifest.predictives.keys() == {"map", "temperature", "laplace", "conditioned"}
    assert {name: one.rows for name, one in manifest.experts.items()} == {"conditioned": ROWS}
    rows = [{"text": f"row {i}", "label": "positive"} for i in range(20)]
    learned = laplora.load(finished.artifact, device="cpu", progress=False).condition(rows, force=True)
    assert learned.predictor.artifact.manifest.experts["conditioned"].rows == ROWS + len(rows)
    flag = manifest.predictives["laplace"].thresholds.flags["high_epistemic"]
    assert "rows of 'out_of_fold'" in flag.origin


def test_a_fold_is_a_plain_run_on_its_rows(finished: FinishedRun, tmp_path: Path) -> None:
    """The same adapter, and the same numbers of the rows that it was not trained on, to the last bit."""
    fold = (folds := fold_runs(open_run(finished.config)))[1]
    parts = [[{e.id for e in part} for part in (one.splits.train, one.splits.calibration)] for one in folds]
    assert sum(len(answered) for _, answered in parts) == len(set.union(*(answered for _, answered in parts))) == ROWS
    assert not any(trained & answered for trained, answered in parts)
    splits, seed = fold.splits, finished.config.seed
    files = {}
    for name in ("train", "calibration", "test"):
        examples = getattr(splits, name)
        random.Random(seed).shuffle(order := list(range(len(examples))))
        rows = [examples[order.index(i)] for i in range(len(order))]  # which the run's shuffle puts into this order
        labelled = [{**e.fields, "label": splits.task.labels[e.label]} for e in rows]
        files[name] = str(write_rows(tmp_path / f"{name}.jsonl", labelled))
    plain = sentiment_config(
        tmp_path,
        finished.base,
        data=DATA | {"path": files},
        adapter=DROPOUT,
        optimizer=STEPS | {"steps": fold.config.optimizer.steps},
    )
    assert job("finetune", plain) == job("fit", plain) == 0
    config = load_config(plain)
    assert same(adapter(config.run_dir), adapter(fold.folder))
    saved = [config.run_dir / "laplace" / "calibration.safetensors", fold.folder / "laplace" / "held_out.safetensors"]
    by_itself, of_fold = (split_of(load_file(file)) for file in saved)
    for name in ("contrast_mean", "kept", "rest"):
        assert torch.equal(getattr(by_itself.projected, name), getattr(of_fold.projected, name))
    assert torch.equal(by_itself.labels, of_fold.labels)


# A run that was stopped.


def test_jobs_one_by_one_stopped_in_a_fold_have_the_results_of_a_run(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit, adapted and tied lm_head too: 16 steps of the served adapter, 8 of the first fold's, 7 of 8."""
    file = cross_fit_config(tmp_path, finished.base)
    one, other = finished.config.run_dir, load_config(file).run_dir
    interrupted_at(16 + 8 + 7, file)
    assert not (other / "folds" / "1" / "adapter").exists()
    assert job("fit", file) == 1
    assert "no trained adapter in" in capsys.readouterr().err
    assert job("finetune", file) == 0
    printed = capsys.readouterr().out
    assert printed.count("adapter already trained") == 2
    assert "checkpoint-4" in printed
    for name in ("fit", "evaluate", "package"):
        assert job(name, file) == 0
    kept = [path.relative_to(one) for path in one.rglob("*.safetensors")]
    files = [path for path in kept if not {"checkpoints", "frozen"} & set(path.parts)]
    assert {"adapter", "folds", "laplace", "report"} <= {path.parts[0] for path in files}
    for path in files:
        assert same(load_file(one / path), load_file(other / path)), path
    assert read(one / "report" / "evaluation.json") == read(other / "report" / "evaluation.json")


def test_the_passes_of_the_folds_are_kept(finished: FinishedRun, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that was stopped after them runs the model for none of them again."""
    config = load_config(copied)
    (config.run_dir / "laplace" / "fit.json").unlink()
    monkeypatch.setattr(passes, "contrast_jacobians", None)
    monkeypatch.setattr(fold_adapters_module, "project_split", None)
    assert job("fit", copied) == 0
    records = [read_fit(one.run_dir / "laplace") for one in (config, finished.config)]
    assert records[0] == records[1]
