"""The jobs on a tiny model: what they record, what they refuse, and that a stopped one ends as if it never stopped."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import FinishedRun, copy_run, sentiment_config, sentiment_rows, write_config, write_rows

from laplora.jacobians.blocks import Block
from laplora.posterior.base import block_precisions
from laplora.posterior.file import read_posterior
from laplora.predictor import Predictor
from training import evaluate as evaluate_job
from training import finetune as finetune_job
from training.__main__ import main
from training.calibration import passes
from training.calibration.posteriors import read_choices, read_member_choice
from training.calibration.projected import read_split
from training.config import RunConfig, load_config
from training.finetune import LabelTrainer, last_checkpoint
from training.workspace.files import write_tensors
from training.workspace.members import member_steps
from training.workspace.runtime import open_run

ROOT = Path(__file__).resolve().parents[2]
PLOTS = ("report/reliability.png", "report/risk_coverage.png", "report/results.md")
SHORT = {"learning_rate": 1e-2, "steps": 24, "batch_size": 6, "checkpoint_every": 8}
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.1}


@pytest.fixture(autouse=True)
def ctrl_c_interrupts() -> Iterator[None]:
    """A process that was started in the background ignores SIGINT, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def adapter(config: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(config.run_dir / "adapter" / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def job(name: str, config_file: Path, *overrides: str) -> int:
    return main([name, "--config", str(config_file), *(f"--set={o}" for o in overrides)])


@pytest.fixture
def run_copy(sentiment_run: FinishedRun, tmp_path: Path) -> Path:
    """The configuration file of a copy of the finished run, to be run again with changes."""
    return copy_run(sentiment_run, sentiment_config(tmp_path, sentiment_run.base))


# Fine-tune.


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> RunConfig:
    """A short fine-tune with dropout that nothing stopped."""
    file = sentiment_config(tmp_path_factory.mktemp("whole"), tiny_base_folder, optimizer=SHORT, adapter=DROPOUT)
    assert job("finetune", file) == 0
    return load_config(file)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let Ctrl-C arrive in the forward pass of a step."""
    seen = 0
    original = LabelTrainer.compute_loss

    def compute_loss(self: LabelTrainer, *arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments, **options)

    monkeypatch.setattr(LabelTrainer, "compute_loss", compute_loss)


@pytest.mark.parametrize("step", [3, 13, 24], ids=["before any checkpoint", "between two", "at the last step"])
def test_an_interrupted_fine_tune_ends_like_an_uninterrupted_one(
    uninterrupted: RunConfig,
    tiny_base_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    step: int,
) -> None:
    """Bit for bit, dropout included: a checkpoint holds the optimizer and the generators' states, and the row order
    is drawn again from the seed."""
    file = sentiment_config(tmp_path, tiny_base_folder, optimizer=SHORT, adapter=DROPOUT)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, step)
        assert job("finetune", file) == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err
    config = load_config(file)
    assert not (config.run_dir / "adapter").exists()
    assert job("finetune", file) == 0
    assert ("resuming at" in capsys.readouterr().out) == (step > 8)
    assert same(adapter(config), adapter(uninterrupted))
    log = json.loads((config.run_dir / "training_log.json").read_text())
    assert log[-1]["step"] == 24


def test_a_killed_fine_tune_continues(tiny_base_folder: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint, in a process of its own; longer, so that it is still busy then."""
    configs = []
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        steps = {**SHORT, "steps": 90, "checkpoint_every": 15}
        configs.append(sentiment_config(tmp_path / name, tiny_base_folder, optimizer=steps, adapter=DROPOUT))
    killed, whole = (load_config(c) for c in configs)
    process = subprocess.Popen(
        [sys.executable, "-m", "training", "finetune", "--config", str(configs[0])], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        while process.poll() is None and last_checkpoint(killed.run_dir / "checkpoints") is None:
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    for config in configs:
        assert job("finetune", config) == 0
    for name, tensor in adapter(killed).items():
        # another process may get other memory alignments and with them another order of sums
        torch.testing.assert_close(tensor, adapter(whole)[name], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_cut_off_while_it_was_written_is_passed_over(
    uninterrupted: RunConfig, tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sentiment_config(tmp_path, tiny_base_folder, optimizer=SHORT, adapter=DROPOUT)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 20)
        assert job("finetune", file) == 130
    config = load_config(file)
    checkpoints = config.run_dir / "checkpoints"
    state = checkpoints / "checkpoint-16" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    (checkpoints / "checkpoint-24").mkdir()
    assert job("finetune", file) == 0
    assert "checkpoint-8" in capsys.readouterr().out
    assert same(adapter(config), adapter(uninterrupted))


def test_a_seed_fixes_the_result(uninterrupted: RunConfig, tiny_base_folder: Path, tmp_path: Path) -> None:
    file = sentiment_config(tmp_path, tiny_base_folder, optimizer=SHORT, adapter=DROPOUT)
    config = load_config(file)
    assert job("finetune", file) == 0
    assert same(adapter(config), adapter(uninterrupted))
    assert job("finetune", file, "seed=1") == 0
    assert not same(adapter(load_config(file, ["seed=1"])), adapter(uninterrupted))


ENSEMBLE = "predictives.ensemble=3"


def members(config: RunConfig) -> dict[str, dict[str, torch.Tensor]]:
    return {p.parent.name: load_file(p) for p in config.run_dir.glob("members/*/adapter_model.safetensors")}


def test_adapters_of_the_second_half_are_kept(
    uninterrupted: RunConfig, tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evenly spaced, the final one included; keeping them changes nothing in the final one, and a stopped fine-tune
    keeps the same ones."""
    file = sentiment_config(tmp_path, tiny_base_folder, optimizer=SHORT, adapter=DROPOUT)
    config = load_config(file, [ENSEMBLE])
    assert job("finetune", file, ENSEMBLE) == 0
    kept = members(config)
    assert sorted(kept) == ["step-12", "step-18"]
    assert same(adapter(config), adapter(uninterrupted))
    for one, other in ((kept["step-12"], kept["step-18"]), (kept["step-18"], adapter(config))):
        assert one.keys() == other.keys()
        assert not same(one, other)
    assert job("finetune", file, ENSEMBLE) == 0
    assert "adapter already trained" in capsys.readouterr().out

    for folder in ("members", "adapter", "checkpoints"):
        shutil.rmtree(config.run_dir / folder)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 15)
        assert job("finetune", file, ENSEMBLE) == 130
    assert job("finetune", file, ENSEMBLE) == 0
    assert "resuming at" in capsys.readouterr().out
    again = members(config)
    assert again.keys() == kept.keys()
    assert all(same(again[name], kept[name]) for name in kept)


def test_an_ensemble_asked_for_after_training_is_trained_for(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same adapter comes out, bit for bit, so what was fitted to it stays."""
    file = sentiment_config(tmp_path, tiny_base_folder, optimizer=SHORT, adapter=DROPOUT)
    assert job("finetune", file) == 0
    before = adapter(load_config(file))
    (load_config(file).run_dir / "laplace").mkdir()
    assert job("finetune", file, ENSEMBLE) == 0
    config = load_config(file, [ENSEMBLE])
    assert same(adapter(config), before)
    assert sorted(members(config)) == ["step-12", "step-18"]
    assert (config.run_dir / "laplace").is_dir()
    shutil.rmtree(config.run_dir / "members")
    assert job("finetune", file, ENSEMBLE) == 0
    assert "lie before the last checkpoint" in capsys.readouterr().out
    assert sorted(members(config)) == ["step-12", "step-18"]


@pytest.mark.parametrize(
    ("steps", "count", "kept"),
    [(400, 5, (200, 250, 300, 350)), (400, 2, (200,)), (400, 0, ()), (7, 4, (4, 5, 6)), (4, 3, (2, 3)), (9, 3, (5, 7))],
)
def test_steps_of_the_members(
    steps: int, count: int, kept: tuple[int, ...], tiny_base_folder: Path, tmp_path: Path
) -> None:
    file = sentiment_config(tmp_path, tiny_base_folder)
    config = load_config(file, [f"optimizer.steps={steps}", f"predictives.ensemble={count}"])
    assert member_steps(config) == kept
    assert len({*kept, steps}) == max(count, 1)


def _edit_a_row(file: Path) -> None:
    rows = sentiment_rows()
    for row in rows:
        row["text"] += " Really."
    write_rows(file.parent / "reviews.jsonl", rows)


@pytest.mark.parametrize(
    ("overrides", "edit"),
    [
        (["optimizer.steps=5"], None),
        (["adapter.rank=2"], None),
        (["max_tokens=12", "optimizer.steps=5"], None),
        ([], _edit_a_row),
    ],
    ids=["optimizer", "adapter", "limit", "rows of the same file"],
)
def test_stale_results_are_not_taken(
    run_copy: Path, overrides: list[str], edit: Callable[[Path], None] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = adapter(load_config(run_copy))
    if edit is not None:
        edit(run_copy)
    for name in ("fit", "evaluate", "package"):
        assert job(name, run_copy, *overrides) == 1
        assert re.search("no trained adapter|no fitted posterior|other rows", capsys.readouterr().err)
    config = load_config(run_copy, overrides)
    assert job("finetune", run_copy, *overrides) == 0
    assert "fine-tuning on 40 rows" in capsys.readouterr().out
    assert not same(adapter(config), before)
    assert not (config.run_dir / "laplace").exists()


def test_a_changed_fit_must_be_evaluated_again(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = "laplace.prior=evidence"
    for name in ("evaluate", "package"):
        assert job(name, run_copy, change) == 1
        assert "run 'python -m training fit' again" in capsys.readouterr().err
    assert job("fit", run_copy, change) == 0
    assert job("package", run_copy, change) == 1
    assert "run 'python -m training evaluate' again" in capsys.readouterr().err


def test_the_initial_adapter_is_where_training_began(sentiment_run: FinishedRun) -> None:
    """PEFT starts A at random and B at zero; with the run's seed the start can be drawn again."""
    start = load_file(sentiment_run.config.run_dir / "initial_adapter" / "adapter_model.safetensors")
    end = adapter(sentiment_run.config)
    assert start.keys() == end.keys()
    for name, tensor in start.items():
        assert bool((tensor != 0).any()) == (".lora_A." in name)
        assert not torch.equal(tensor, end[name])


def test_only_label_rows_of_the_head_move(sentiment_run: FinishedRun) -> None:
    """The loss sees the label tokens only, so the other 49,150 rows of lm_head's B stay zero."""
    artifact = json.loads((sentiment_run.artifact / "manifest.json").read_text())
    moved = adapter(sentiment_run.config)["base_model.model.lm_head.lora_B.weight"].abs().sum(1).nonzero().flatten()
    assert moved.tolist() == sorted(artifact["label_token_ids"])


def test_squared_distances(sentiment_run: FinishedRun) -> None:
    start = load_file(sentiment_run.config.run_dir / "initial_adapter" / "adapter_model.safetensors")
    recorded, end = fit_record(sentiment_run.config)["squared_distances"], adapter(sentiment_run.config)
    assert len(recorded) == len(end)
    for name, value in recorded.items():
        key = f"base_model.model.{name}.weight"
        assert value == pytest.approx(float(torch.dist(end[key].double(), start[key].double())) ** 2, rel=1e-9)
        assert value > 0


def test_training_that_diverges_is_an_error(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverging = ("optimizer.learning_rate=1e30", "optimizer.steps=4")
    assert job("finetune", run_copy, *diverging) == 1
    assert "NaN or infinite weights: lower optimizer.learning_rate" in capsys.readouterr().err
    assert not (load_config(run_copy, list(diverging)).run_dir / "adapter").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("base", ["quantization=none", "quantization=nf4", "quantization=nf4 dequantize=false"])
def test_a_base_that_is_not_a_number_is_refused_before_training(
    run_copy: Path, sentiment_run: FinishedRun, number: float, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hours of training would end in NaN; in packed 4-bit weights a NaN is in the scale of its block only."""
    broken = Path(shutil.copytree(sentiment_run.base, run_copy.parent / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = number
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    options = [f"base.{option}" for option in base.split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelTrainer, "train", None)
        assert job("finetune", run_copy, f"base.model={broken}", *options) == 1
    assert "holds NaN or infinity in model.layers.1.mlp.down_proj.weight" in capsys.readouterr().err


def test_labels_that_training_never_sees_are_warned_about_before_it(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sentiment_config(tmp_path, tiny_base_folder)
    config = yaml.safe_load(file.read_text())
    config["data"]["labels"] = ["negative", "positive", "neutral"]
    file.write_text(yaml.safe_dump(config | {"optimizer": SHORT | {"steps": 1}}))
    assert job("finetune", file, "data.calibration=12") == 0
    out = capsys.readouterr().out
    for warning in ("no training row has the label 'neutral'", "12 calibration rows are fewer than 20"):
        assert warning in out
        assert out.index(warning) < out.index("fine-tuning on")


# Fit.


def fit_record(config: RunConfig) -> dict[str, Any]:
    return json.loads((config.run_dir / "laplace" / "fit.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def unfitted(run_copy: Path) -> Path:
    shutil.rmtree(load_config(run_copy).run_dir / "laplace")
    return run_copy


def count_passes(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Count the batches of the curvature passes; let Ctrl-C arrive in one of them."""
    original, seen = passes.contrast_jacobians, [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        seen[0] += 1
        if seen[0] == stop_at:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(passes, "contrast_jacobians", counted)
    return seen


@pytest.mark.parametrize("stop_at", [3, 9], ids=["factors", "scales"])
def test_an_interrupted_fit_ends_like_an_uninterrupted_one(
    unfitted: Path, sentiment_run: FinishedRun, stop_at: int
) -> None:
    """Bit for bit: sums are kept in the number format that they are made in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "SAVE_EVERY_S", -1.0)
        count_passes(patch, stop_at)
        assert job("fit", unfitted) == 130
        seen = count_passes(patch)
        assert job("fit", unfitted) == 0
    batches_a_pass = 5
    assert seen[0] == 2 * batches_a_pass - (stop_at - 1)
    config, whole = load_config(unfitted), sentiment_run.config
    for file in ("posterior.safetensors", "calibration.safetensors"):
        assert same(load_file(config.run_dir / "laplace" / file), load_file(whole.run_dir / "laplace" / file))
    assert fit_record(config) == fit_record(whole)


@pytest.mark.parametrize(
    ("structure", "subset"), [("kfac_reduce", "all"), ("exact", "values_b"), ("joint", "last_layer")]
)
def test_an_interrupted_fit_of_another_structure_goes_on(
    unfitted: Path, sentiment_run: FinishedRun, tmp_path: Path, structure: str, subset: str
) -> None:
    """Sums, a list that grows with the rows, and a subset; all of one pass, whatever was kept for another structure."""
    overrides = (f"laplace.structure={structure}", f"laplace.subset={subset}")
    config = load_config(unfitted, list(overrides))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "SAVE_EVERY_S", -1.0)
        assert job("fit", unfitted, *overrides) == 0
        whole = Path(shutil.copytree(config.run_dir / "laplace", tmp_path / "whole"))
        shutil.rmtree(config.run_dir / "laplace")
        shutil.copytree(sentiment_run.config.run_dir / "laplace", config.run_dir / "laplace")
        count_passes(patch, 4)
        assert job("fit", unfitted, *overrides) == 130
        seen = count_passes(patch)
        assert job("fit", unfitted, *overrides) == 0
    assert seen[0] == 5 - 3
    for file in ("posterior.safetensors", "calibration.safetensors"):
        assert same(load_file(config.run_dir / "laplace" / file), load_file(whole / file))
    with safe_open(whole / "posterior.safetensors", framework="pt") as handle:
        metadata = handle.metadata()
    covered = json.loads(metadata["blocks"])
    assert metadata["structure"] == structure
    assert len(covered) == {"all": 10, "values_b": 2, "last_layer": 4}[subset]
    assert set(fit_record(config)["squared_distances"]) == set(covered)


@pytest.mark.filterwarnings("ignore:leave-one-out:RuntimeWarning")
def test_a_prior_by_leave_one_out_of_the_training_rows_is_served(run_copy: Path) -> None:
    overrides = ("laplace.structure=exact", "laplace.prior=leave_one_out")
    config = load_config(run_copy, list(overrides))
    for name in ("fit", "evaluate", "package"):
        assert job(name, run_copy, *overrides) == 0
    served = fit_record(config)["served"]
    assert served == {"method": "leave_one_out", "granularity": "scalar"}
    manifest = Predictor.load(config.artifact_dir, device="cpu").artifact.manifest
    assert manifest.prior.method == "leave_one_out"
    chosen = next(c for c in fit_record(config)["choices"] if c["method"] == "leave_one_out")
    assert manifest.prior.precision == chosen["prior"]["precision"]


def test_a_posterior_of_another_form_over_a_subset_is_served(run_copy: Path) -> None:
    """From the fit to the golden answers that the loaded artifact repeats."""
    overrides = ("laplace.structure=ekfac", "laplace.subset=regex:lora_B$", "laplace.granularity=group")
    for name in ("fit", "evaluate", "package"):
        assert job(name, run_copy, *overrides) == 0
    config = load_config(run_copy, list(overrides))
    predictor = Predictor.load(config.artifact_dir, device="cpu")
    rows = [predictor.encode({"text": text}, truncate=False) for text in ("The film was great.", "Dull.")]
    with_posterior, without = predictor.predict(rows), predictor.predict(rows, "map")
    assert [a.map_probs for a in with_posterior] == [pytest.approx(a.map_probs, abs=1e-5) for a in without]
    assert all(a.logit_variance is not None and min(a.logit_variance) > 0 for a in with_posterior)


def test_a_finished_fit_takes_no_pass(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so another prior costs none either."""
    seen = count_passes(monkeypatch)
    other = ("laplace.prior=evidence", "laplace.granularity=group")
    assert job("fit", run_copy, *other) == 0
    assert seen == [0]
    assert fit_record(load_config(run_copy, list(other)))["served"] == {"method": "evidence", "granularity": "group"}


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_does_not_change_the_fit(run_copy: Path, sentiment_run: FinishedRun, batch_size: int) -> None:
    """Batch 1, and a partial last batch. Float32 sums in another order, in a sketch and then in
    eigenvectors, of which close ones may turn into each other: what the posterior answers is compared, to 1e-3."""
    config = load_config(run_copy, [f"laplace.batch_size={batch_size}"])
    assert job("fit", run_copy, f"laplace.batch_size={batch_size}") == 0
    one, two = fit_record(config), fit_record(sentiment_run.config)
    assert one["train_rows"] == two["train_rows"] == 40
    assert one["log_likelihood"] == pytest.approx(two["log_likelihood"], rel=1e-5)
    assert one["effective_dimension"] == pytest.approx(two["effective_dimension"], rel=1e-2)
    for a, b in zip(one["choices"], two["choices"], strict=True):
        assert a["objective"] == pytest.approx(b["objective"], rel=1e-3)
    covariances = []
    for folder in (config.run_dir / "laplace", sentiment_run.config.run_dir / "laplace"):
        choice = read_choices(sentiment_run.config.run_dir / "laplace")[0]
        posterior = read_posterior(folder / "posterior.safetensors", blocks(sentiment_run))
        precisions = block_precisions(choice.prior, posterior.blocks)
        covariances.append(posterior.covariance(read_split(folder / "calibration.safetensors").projected, precisions))
    torch.testing.assert_close(*covariances, rtol=1e-3, atol=1e-6)


def blocks(run: FinishedRun) -> tuple[Block, ...]:
    posterior = Predictor.load(run.artifact, device="cpu", verify_golden=False)._members.trained.posterior
    assert posterior is not None
    return posterior.blocks


def test_both_ways_to_choose_the_prior_are_recorded(sentiment_run: FinishedRun, choices_run: FinishedRun) -> None:
    for run, served in ((sentiment_run, ("validation", "scalar")), (choices_run, ("evidence", "group"))):
        record = fit_record(run.config)
        found = {(c["method"], c["prior"]["granularity"]): c for c in record["choices"]}
        assert set(found) == {(m, g) for m in ("evidence", "validation") for g in ("scalar", "group")}
        assert (record["served"]["method"], record["served"]["granularity"]) == served
        manifest = json.loads((run.artifact / "manifest.json").read_text())
        assert manifest["prior"]["precision"] == found[served]["prior"]["precision"]
        # a finer prior can only fit what it is chosen by at least as well (to the search's tolerance)
        for method in ("evidence", "validation"):
            assert found[method, "group"]["objective"] >= found[method, "scalar"]["objective"] - 1e-4


def test_the_log_likelihood_is_the_served_models_on_the_training_rows(
    sentiment_run: FinishedRun, sentiment_predictor: Predictor
) -> None:
    run = open_run(sentiment_run.config)
    answers = sentiment_predictor.predict(run.encode(run.splits.train), "map")
    probs = torch.tensor([a.map_probs[e.label] for a, e in zip(answers, run.splits.train, strict=True)])
    assert fit_record(sentiment_run.config)["log_likelihood"] == pytest.approx(float(probs.log().sum()), rel=1e-4)


# Members.


@pytest.fixture
def mixture_copy(mixture_run: FinishedRun, tmp_path: Path) -> Path:
    """The configuration file of a copy of the run with every predictive."""
    content = yaml.safe_load(mixture_run.config_file.read_text())
    content |= {"runs": str(tmp_path / "runs"), "artifacts": str(tmp_path / "artifacts")}
    return copy_run(mixture_run, write_config(tmp_path / "mixture.yaml", **content))


def test_an_interrupted_fit_of_the_members_ends_like_an_uninterrupted_one(
    mixture_copy: Path, mixture_run: FinishedRun
) -> None:
    """Three adapters, two passes of five batches each; stopped in the second one's second pass."""
    config, whole = load_config(mixture_copy), mixture_run.config
    shutil.rmtree(config.run_dir / "laplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "SAVE_EVERY_S", -1.0)
        count_passes(patch, stop_at=17)
        assert job("fit", mixture_copy) == 130
        seen = count_passes(patch)
        assert job("fit", mixture_copy) == 0
    assert seen[0] == 30 - 16
    for file in (
        "members/step-20/posterior.safetensors",
        "members/step-30/posterior.safetensors",
        "scores.safetensors",
    ):
        assert same(load_file(config.run_dir / "laplace" / file), load_file(whole.run_dir / "laplace" / file))
    for file in ("fit.json", "calibrators.json"):
        assert (config.run_dir / "laplace" / file).read_text() == (whole.run_dir / "laplace" / file).read_text()


def test_finished_members_take_no_pass(mixture_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_passes(monkeypatch)
    assert job("fit", mixture_copy, "predictives.serve=ensemble") == 0
    assert seen == [0]
    folder = load_config(mixture_copy, ["predictives.serve=ensemble"]).run_dir / "laplace"
    found = json.loads((folder / "calibrators.json").read_text())["recommended"]
    assert (found["predictive"], found["chosen_by"]) == ("ensemble", "configuration")
    assert "set by the configuration; by the calibration split it would be" in found["reason"]


def test_a_members_posterior_is_its_own_adapters(mixture_run: FinishedRun) -> None:
    """Each adapter has its curvature and its prior: none is the trained one's."""
    folder = mixture_run.config.run_dir / "laplace"
    files = [folder / "posterior.safetensors", *sorted(folder.glob("members/*/posterior.safetensors"))]
    curvatures = [load_file(f)["factor"].square().sum() for f in files]
    assert len(curvatures) == 3
    assert not torch.allclose(curvatures[0], curvatures[1], rtol=1e-2)
    assert not torch.allclose(curvatures[1], curvatures[2], rtol=1e-2)
    precisions = {read_member_choice(f.parent).prior.precision["all"] for f in files[1:]}
    assert len(precisions) == 2


def test_a_changed_member_is_not_taken_for_the_fitted_one(
    mixture_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(mixture_copy)
    file = config.run_dir / "members" / "step-20" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({k: 1.1 * v for k, v in weights.items()}, file, {"format": "pt"})
    assert job("evaluate", mixture_copy) == 1
    assert "run 'python -m training fit' again" in capsys.readouterr().err
    before = load_file(config.run_dir / "laplace" / "members" / "step-20" / "posterior.safetensors")
    assert job("fit", mixture_copy) == 0
    assert not same(load_file(config.run_dir / "laplace" / "members" / "step-20" / "posterior.safetensors"), before)
    file.unlink()
    assert job("fit", mixture_copy) == 1
    assert "the adapters of steps [20] were not kept: run 'python -m training finetune'" in capsys.readouterr().err


# Evaluate and package.


def test_every_method_is_measured_on_every_test_row(sentiment_run: FinishedRun) -> None:
    folder = sentiment_run.artifact / "report"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert list(evaluation)[:5] == ["zero_shot", "map", "temperature", "fast", "laplace"]
    assert set(evaluation) >= {"laplace_evidence_scalar", "laplace_evidence_group", "laplace_validation_group"}
    assert {e["rows"] for e in evaluation.values()} == {24}
    # scaling logits by one number moves no decision
    assert evaluation["temperature"]["accuracy"] == evaluation["map"]["accuracy"]
    assert evaluation["zero_shot"]["nll"] != evaluation["map"]["nll"]
    assert (folder / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_the_artifact_measures_what_was_evaluated(sentiment_run: FinishedRun, sentiment_predictor: Predictor) -> None:
    """The served path, row by row, gives the NLL in the report: the model that answers is the one that was measured."""
    run = open_run(sentiment_run.config)
    answers = sentiment_predictor.predict(run.encode(run.splits.test))
    evaluation = json.loads((sentiment_run.artifact / "report" / "evaluation.json").read_text())
    for method, field in (("map", "map_probs"), ("laplace", "probs")):
        nll = [-torch.tensor(getattr(a, field)[e.label]).log() for a, e in zip(answers, run.splits.test, strict=True)]
        assert evaluation[method]["nll"] == pytest.approx(float(torch.stack(nll).mean()), rel=1e-3)


def test_a_run_done_again_gives_the_same_artifact(
    run_copy: Path, sentiment_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step but fine-tuning is repeated or read back; only the time of writing and the paths may differ."""
    monkeypatch.setattr(evaluate_job, "write_report", lambda *_, **__: None)  # plots, the slowest part
    assert job("run", run_copy) == 0
    one, two = (
        json.loads((folder / "manifest.json").read_text())
        for folder in (load_config(run_copy).artifact_dir, sentiment_run.artifact)
    )
    for manifest in (one, two):
        del manifest["created"]
        for paths in ("available", "duplicates_dropped"):
            manifest["data"][paths] = list(manifest["data"][paths].values())
        manifest["config"]["data"].pop("path")
        manifest["files"] = {k: v for k, v in manifest["files"].items() if k not in PLOTS}
    assert one == two


def test_golden_inputs_of_the_configuration_are_recorded(run_copy: Path) -> None:
    golden = "golden_inputs=[{text: first one}, {text: second one}]"
    assert job("package", run_copy, golden) == 0
    recorded = json.loads((load_config(run_copy).artifact_dir / "golden.json").read_text())
    assert [a["inputs"] for a in recorded["answers"]] == [{"text": "first one"}, {"text": "second one"}]


# What is refused, and how it is said.


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("fit", ["name=fresh"], "no trained adapter in .*: run 'python -m training finetune' first"),
        ("evaluate", ["name=fresh"], "no trained adapter in .*: run 'python -m training finetune' first"),
        ("package", ["name=fresh"], "no fitted posterior in .*: run 'python -m training fit' first"),
        ("run", ["data.path=nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        ("run", ["data.train=1000"], "ask for fewer"),
        ("run", ["data.calibration=0"], "the calibration split is empty"),
        ("run", ["data.test=0"], "the test split is empty"),
        (
            "run",
            ["data.labels=[negative, so good]", "data.label_map={negative: negative, positive: so good}"],
            "label 'so good' must be one token after the prompt",
        ),
        ("run", ["data.labels=[negative, neutral]"], r"field 'label' is 'positive', expected one of"),
        ("run", ["golden_inputs=[{txet: x}]"], "golden_inputs.0: template 'sentiment' takes the fields"),
        ("run", ["base.model=/nowhere"], "base model '/nowhere': no tokenizer can be loaded"),
        ("run", ["base.device=gpu"], "no device is called 'gpu'"),
        (
            "run",
            ["adapter.targets=[qkv_proj]", "name=fresh"],
            "adapter.targets 'qkv_proj': no module of this base is called that",
        ),
        ("run", ["optimizer.steps=none", "seed=x"], r"2 bad field\(s\)"),
    ],
)
def test_a_job_that_cannot_run_says_why(
    run_copy: Path, name: str, overrides: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Status 1 and the reason on stderr, without a traceback, before anything is trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_job.LabelTrainer, "train", None)
        assert job(name, run_copy, *overrides) == 1
    printed = capfd.readouterr()
    assert printed.err.startswith("error: ")
    assert re.search(message, printed.err)
    assert "Traceback" not in printed.err
    assert "Review:" not in printed.err


def test_written_tensors_have_the_same_bytes_every_time(tmp_path: Path) -> None:
    """safetensors itself writes metadata in another order in every process, and an artifact is known by its digest."""
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor([1], dtype=torch.bfloat16)}
    metadata = {f"key{i}": f"ü{i}" for i in range(20)}
    for number in range(5):
        write_tensors(tmp_path / str(number), tensors, dict(reversed(metadata.items())) if number % 2 else metadata)
    assert len({(tmp_path / str(n)).read_bytes() for n in range(5)}) == 1
    assert same(load_file(tmp_path / "0"), tensors)
    with safe_open(tmp_path / "0", framework="pt") as file:
        assert file.metadata() == metadata
