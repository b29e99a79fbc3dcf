"""What the fast predictive is distilled from, and what a run keeps of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import FinishedRun, sentiment_config, write_rows

from laplora.artifact.folder import read_artifact
from laplora.artifact.manifest import DISTILLED
from laplora.data.labelled import read_inputs
from laplora.errors import DataError
from laplora.fitting import distillation
from laplora.fitting.distillation import distill_covariance, further_inputs, watched_layers
from laplora.fitting.progress import Silent
from laplora.fitting.projected import ProjectedSplit, project_split
from laplora.fitting.saving import read_fit
from laplora.fitting.settings import FitSettings
from laplora.fitting.store import FolderStore
from laplora.fitting.variants import variants
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.file import read_posterior
from laplora.prompts.examples import Example
from training.config import load_config
from training.workspace.results import load_trained
from training.workspace.runtime import open_run

ROWS = tuple(
    Example(str(i), {"question": f"one two three {i} five", "choices": ("a", "b", f"c{i}")}, i % 3, 3) for i in range(8)
)


def test_variants_are_like_their_rows_and_the_same_again() -> None:
    made = variants(ROWS, 200, seed=0)
    assert made == variants(ROWS, 200, seed=0)
    assert made != variants(ROWS, 200, seed=1)
    assert len({example.id for example, _ in made}) == 200
    for example, origin in made:
        assert sorted(example.fields["choices"]) == sorted(ROWS[origin].fields["choices"])
        words = set(example.fields["question"].split())
        assert words
        assert words <= {word for row in ROWS for word in row.fields["question"].split()}
    assert len({example.fields["question"] for example, _ in made}) > 60
    assert len({example.fields["choices"] for example, _ in made}) > 20


def test_variants_of_texts_of_one_word_or_none() -> None:
    rows = (Example("0", {"text": "word"}, 0, 2), Example("1", {"text": ""}, 0, 2))
    assert len(variants(rows, 40, seed=0)) == 40


@pytest.fixture
def given(sentiment_run: FinishedRun, tmp_path: Path) -> Callable[..., list[tuple[Example, int]]]:
    """Returns the further inputs of a run with a file of so many unlabelled rows, its adapter not trained yet."""

    def inputs(fast: int, rows: int, field: str = "text") -> list[tuple[Example, int]]:
        path = write_rows(tmp_path / "unlabelled.jsonl", [{field: f"Remark {i}."} for i in range(rows)])
        predictives = {"fast": fast, "fast_inputs": str(path)}
        run = open_run(load_config(sentiment_config(tmp_path, sentiment_run.base, predictives=predictives)))
        made = further_inputs(run.splits.train, read_inputs(path, run.splits.task), run.config.fit)
        assert all(example is run.splits.train[i] for example, i in made[: min(fast, 40)])
        return made

    return inputs


def test_inputs_are_training_rows_the_users_own_then_variants(given: Callable[..., list[tuple[Example, int]]]) -> None:
    inputs = given(fast=30, rows=10)
    own, made = inputs[30:40], inputs[40:]
    assert [e.fields["text"] for e, _ in own] == [f"Remark {i}." for i in range(10)]
    assert {e.label for e, _ in own} == {-1}
    assert [i for _, i in own] == list(range(40, 50))
    assert len(made) == 20
    assert all("variant" in e.id and i < 40 for e, i in made)


def test_more_of_the_users_own_than_wanted(given: Callable[..., list[tuple[Example, int]]]) -> None:
    inputs = given(fast=6, rows=50)
    assert len(inputs) == 12
    assert len({e.fields["text"] for e, _ in inputs[6:]}) == 6


def test_an_unlabelled_file_without_the_field(given: Callable[..., list[tuple[Example, int]]]) -> None:
    with pytest.raises(DataError, match="'text' is missing"):
        given(fast=6, rows=1, field="sentence")


def test_the_artifact_holds_the_predictor_and_its_fidelity(sentiment_run: FinishedRun) -> None:
    manifest = read_artifact(sentiment_run.artifact).manifest
    assert manifest.distilled == read_fit(sentiment_run.config.run_dir / "laplace").distilled
    assert manifest.distilled is not None
    assert manifest.distilled.inputs == 32 + 24 + 24
    assert DISTILLED in manifest.files
    evaluation = json.loads((sentiment_run.artifact / "report" / "evaluation.json").read_text())
    fidelity = evaluation["fast"]["fidelity"]
    assert manifest.metrics["fast"]["fidelity"] == fidelity
    assert fidelity["nll"] == pytest.approx(evaluation["fast"]["nll"])
    assert fidelity["laplace_nll"] == pytest.approx(evaluation["laplace"]["nll"])
    assert 0.3 < fidelity["rank_correlation"] <= 1
    assert 0 < fidelity["standardised_error"] < 5
    assert 0 <= fidelity["unfamiliar"] <= fidelity["handed_over"] < 1
    assert fidelity["handed_over"] <= fidelity["same_decision"] <= 1
    assert "Mode fast:" in (sentiment_run.artifact / "report" / "results.md").read_text()


def test_kept_passes_are_read_and_those_of_other_inputs_are_not(
    sentiment_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped job loses one part at most, and the distilled file is the same."""
    monkeypatch.setattr(distillation, "_PART", 20)
    run = open_run(sentiment_run.config)
    model = load_trained(run)
    laplace = sentiment_run.config.run_dir / "laplace"
    posterior = read_posterior(laplace / "posterior.safetensors", find_blocks(model, 2))
    prior = read_fit(laplace).served.prior
    classifier, settings, quiet = run.classifier(model), run.config.fit, Silent()
    layers = watched_layers(classifier, settings)
    rows, train = run.splits.calibration, run.splits.train
    calibration = project_split(classifier, posterior, rows, quiet, "calibration", layers=layers)
    titles: list[str] = []

    def counted(*arguments: Any, **options: Any) -> ProjectedSplit:
        titles.append(arguments[4])
        return project_split(*arguments, **options)

    def distilled(mark: str, settings: FitSettings = settings) -> torch.Tensor:
        store = FolderStore(tmp_path, mark)
        made = distill_covariance(classifier, posterior, prior, train, (), calibration, settings, store, quiet)
        assert made is not None
        return made.held_out

    monkeypatch.setattr(distillation, "project_split", counted)
    first = distilled("this model")
    assert len(titles) == 3  # 24 training rows and 24 variants, 20 at a time
    (tmp_path / "distillation" / "1.safetensors").unlink()
    second = distilled("this model")
    assert titles[3:] == [titles[1]]
    assert torch.equal(first, second)
    distilled("this model", settings.model_copy(update={"seed": 5}))
    assert len(titles) == 7
    distilled("another model")
    assert len(titles) == 10
