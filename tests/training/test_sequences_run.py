"""A whole run whose labels are several tokens, with names of their own: from fine-tuning to the loaded artifact."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from tiny_runs import job, sentiment_config, sentiment_rows, write_rows

from laplora.artifact.readout_records import LabelSequencesRecord
from laplora.predictor import Predictor
from training.config import load_config
from training.evaluate import plain_probs
from training.workspace import run as run_module
from training.workspace import runtime
from training.workspace.results import load_trained
from training.workspace.runtime import open_run

#: Of two and three tokens.
LABELS = {"negative": " rather bad", "positive": " very good indeed"}


def test_a_run_reads_labels_of_several_tokens_to_its_end(
    tmp_path: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frozen fit has a base model, the other steps share one, and all of them one reading of the rows."""
    loads, reads = Mock(wraps=run_module.load_base_model), Mock(wraps=runtime.load_splits)
    monkeypatch.setattr(run_module, "load_base_model", loads)
    monkeypatch.setattr(runtime, "load_splits", reads)
    rows = str(write_rows(tmp_path / "rows.jsonl", sentiment_rows()))
    data = {"dataset": "file", "path": rows, "template": "sentiment", "labels": LABELS}
    file = sentiment_config(
        tmp_path,
        tiny_base_folder,
        data=data | {"train": 24, "calibration": 20, "test": 16},
        readout="label_sequences",
        adapter={"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
        optimizer={"learning_rate": 1e-2, "steps": 16, "batch_size": 6},
        predictives={"serve": "laplace", "temperature": False},
    )
    assert job("run", file) == 0
    assert (loads.call_count, reads.call_count) == (2, 1)
    config = load_config(file)
    log = [entry["loss"] for entry in json.loads((config.run_dir / "training_log.json").read_text()) if "loss" in entry]
    assert sum(log[-4:]) < sum(log[:4])
    predictor = Predictor.load(config.artifact_dir, device="cpu")  # replays the golden answers
    manifest = predictor.artifact.manifest
    assert isinstance(manifest.readout, LabelSequencesRecord)
    assert (manifest.labels, manifest.readout.verbalizers) == (tuple(LABELS), tuple(LABELS.values()))
    assert set(manifest.predictives) <= set(manifest.metrics)
    run = open_run(config)
    trained = plain_probs(run.classifier(load_trained(run)), run.splits.test, 8)
    answers = predictor.predict(run.encode(run.splits.test), "map")
    for answer, probs in zip(answers, trained.tolist(), strict=True):
        assert answer.arrays.probs == pytest.approx(probs, abs=1e-5)
