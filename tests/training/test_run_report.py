"""The page of a run's report: which rows, which texts, and that it judges what the artifact answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alike_runs import read
from tiny_runs import FinishedRun, job

from laplora.artifact.folder import read_artifact
from laplora.artifact.manifest import POSTERIOR
from laplora.files.atomic import file_sha256
from laplora.predictor import Predictor
from training.config import load_config
from training.data.files import SplitPaths
from training.evaluate import measure
from training.report.page import configuration
from training.workspace.results import load_trained
from training.workspace.runtime import open_run


def test_the_page_that_travels_has_no_text_and_the_run_s_own_has(sentiment_run: FinishedRun) -> None:
    run = open_run(sentiment_run.config)
    own = (run.config.run_dir / "report.html").read_text(encoding="utf-8")
    page = (sentiment_run.artifact / "report" / "report.html").read_text(encoding="utf-8")
    assert "report/report.html" in read_artifact(sentiment_run.artifact).manifest.files
    texts = [example.fields["text"] for example in run.splits.test]
    assert any(text in own for text in texts)
    assert not any(text in page for text in texts)
    # Nor has any other file of the artifact: its golden inputs are made of the template and the labels.
    every = [example.fields["text"] for rows in (run.splits.train, run.splits.calibration) for example in rows]
    held = b"".join(file.read_bytes() for file in sentiment_run.artifact.rglob("*") if file.is_file())
    assert [text for text in (*every, *texts) if text.encode() in held] == []
    assert str(sentiment_run.config_file.with_name("reviews.jsonl")) not in page
    for said in ("24 test rows", "length of the prompt", file_sha256(sentiment_run.artifact / POSTERIOR)):
        assert said in page
        assert said in own


def test_the_page_judges_the_rows_as_the_artifact_answers_them(
    sentiment_run: FinishedRun, sentiment_predictor: Predictor
) -> None:
    """Answers, scores, uncertainty and decisions of the test rows are those of the served path."""
    run = open_run(sentiment_run.config)
    rows = measure(run, load_trained(run), run.config.run_dir / "laplace").rows
    answers = sentiment_predictor.predict(run.encode(run.splits.test))
    evaluation = read(run.config.run_dir / "report" / "evaluation.json")
    kept = [a.label_index != e.label for a, e in zip(answers, run.splits.test, strict=True) if a.decision == "accept"]
    assert evaluation[sentiment_predictor.recommended]["accepted"] == {"rows": len(kept), "wrong": sum(kept)}
    sure = [row for row, probs in enumerate(rows.map_probs) if float(probs.max()) >= 0.95]
    assert evaluation["map"]["at_its_word"]["rows"] == len(sure)
    for i, (answer, example) in enumerate(zip(answers, run.splits.test, strict=True)):
        assert rows.references[i] == example.id
        assert rows.probs[i].tolist() == pytest.approx(answer.arrays.probs, abs=2e-3)
        assert rows.map_probs[i].tolist() == pytest.approx(answer.arrays.map_probs, abs=2e-3)
        assert float(rows.score[i]) == pytest.approx(answer.score, abs=1e-2)
        assert bool(rows.review[i]) == (answer.decision == "review")
        assert (rows.epistemic is None) == (answer.epistemic is None)
        if rows.epistemic is not None:
            assert float(rows.epistemic[i]) == pytest.approx(answer.epistemic, abs=1e-2)


def test_texts_travel_where_the_configuration_says_so(run_copy: Path) -> None:
    assert job("evaluate", run_copy, "evaluation.report_texts=true") == 0
    folder = load_config(run_copy, ["evaluation.report_texts=true"]).run_dir
    assert (folder / "report" / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_the_page_of_files_by_split_names_no_folder(sentiment_run: FinishedRun) -> None:
    """A folder's name can tell of the customer whose rows lie in it."""
    config, folder = sentiment_run.config, Path("/clients/somebody")
    paths = SplitPaths(train=folder / "a.jsonl", test=folder / "b.jsonl")
    shown = configuration(config.model_copy(update={"data": config.data.model_copy(update={"path": paths})}))
    assert "somebody" not in shown
    assert {"a.jsonl", "b.jsonl"} <= set(json.loads(shown)["data"]["path"].values())
