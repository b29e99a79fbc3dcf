"""A whole run whose labels are several tokens, with names of their own: from fine-tuning to the loaded artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import finish, sentiment_config, sentiment_rows, write_rows

from laplora.artifact.readout_records import LabelSequencesRecord
from laplora.predictor import Predictor
from training.workspace.results import load_trained
from training.workspace.runtime import open_run

#: Of two and three tokens.
LABELS = {"negative": " rather bad", "positive": " very good indeed"}


def test_a_run_reads_labels_of_several_tokens_to_its_end(
    tmp_path: Path, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", sentiment_rows()))
    data = {"dataset": "file", "path": rows, "template": "sentiment", "labels": LABELS}
    finished = finish(
        sentiment_config(
            tmp_path,
            tiny_base_folder,
            name="tiny-sequences",
            data=data | {"train": 24, "calibration": 20, "test": 16},
            readout="label_sequences",
            adapter={"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
            optimizer={"learning_rate": 1e-2, "steps": 16, "batch_size": 6, "checkpoint_every": 16},
            predictives={"serve": "laplace", "temperature": False},
        ),
        tiny_base_folder,
    )
    config = finished.config
    log = [entry["loss"] for entry in json.loads((config.run_dir / "training_log.json").read_text()) if "loss" in entry]
    assert sum(log[-4:]) < sum(log[:4])
    predictor = Predictor.load(finished.artifact, device="cpu")  # replays the golden answers
    assert len(json.loads((finished.artifact / "golden.json").read_text())["answers"]) == 4
    manifest = predictor.artifact.manifest
    assert isinstance(manifest.readout, LabelSequencesRecord)
    assert (manifest.labels, manifest.readout.verbalizers) == (tuple(LABELS), tuple(LABELS.values()))
    assert set(manifest.predictives) <= set(manifest.metrics)
    run = open_run(config)
    classifier, example = run.classifier(load_trained(run)), run.splits.test[0]
    batch = classifier.collate([classifier.encode(example.fields)])
    logits = classifier.readout.scores(classifier.model, batch).logits.double().softmax(-1)[0]
    (answer,) = predictor.predict([predictor.encode(example.fields, truncate=False)], "map")
    assert answer.probs == pytest.approx(logits.tolist(), abs=1e-5)
