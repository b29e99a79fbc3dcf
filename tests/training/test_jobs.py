"""The jobs on a tiny model: what they record, what they refuse, and that a stopped one ends as if it never stopped."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import FinishedRun, adapter, interrupted_at, job, same, sentiment_config, sentiment_rows, write_rows

from laplora.artifact.folder import read_artifact
from laplora.fitting import passes
from laplora.predictor import Predictor
from training.config import RunConfig, load_config
from training.finetune import LabelTrainer

pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")

SHORT = {"learning_rate": 1e-2, "steps": 24, "batch_size": 6, "checkpoint_every": 8}
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.1}


def fit_record(config: RunConfig) -> dict[str, Any]:
    return json.loads((config.run_dir / "laplace" / "fit.json").read_text())  # type: ignore[no-any-return]


# Fine-tune.


def test_an_interrupted_fine_tune_ends_like_an_uninterrupted_one(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit, dropout included: before any checkpoint, between two, and where the last was cut off."""
    (tmp_path / "whole").mkdir()
    whole, short = (
        sentiment_config(folder, tiny_base_folder, optimizer=SHORT, adapter=DROPOUT)
        for folder in (tmp_path / "whole", tmp_path)
    )
    assert job("finetune", whole) == 0
    folder = load_config(short).run_dir
    for batch, resumed in ((3, ""), (13, ""), (20 - 8, "checkpoint-8")):
        interrupted_at(batch, short)
        shown = capsys.readouterr()
        assert "interrupted; the same command continues" in shown.err
        assert ("resuming at" in shown.out) == bool(resumed)
        assert resumed in shown.out
        assert not (folder / "adapter").exists()
    state = folder / "checkpoints" / "checkpoint-16" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    (folder / "checkpoints" / "checkpoint-24").mkdir()
    assert job("finetune", short) == 0
    assert "checkpoint-8" in capsys.readouterr().out
    assert same(adapter(folder), adapter(load_config(whole).run_dir))
    assert json.loads((folder / "training_log.json").read_text())[-1]["step"] == 24


def test_changed_rows_of_the_same_file_are_trained_on_anew(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No later step takes what the earlier rows made, and finetune puts it aside."""
    before = adapter(load_config(run_copy).run_dir)
    rows = [row | {"text": row["text"] + " Really."} for row in sentiment_rows()]
    write_rows(run_copy.parent / "reviews.jsonl", rows)
    for name in ("fit", "evaluate", "package"):
        assert job(name, run_copy) == 1
        assert "other rows" in capsys.readouterr().err
    config = load_config(run_copy)
    assert job("finetune", run_copy) == 0
    (earlier,) = config.run_dir.glob("earlier-*")
    assert f"earlier results, which are kept in {earlier}" in capsys.readouterr().out
    assert same(adapter(earlier), before)
    assert (earlier / "laplace" / "posterior.safetensors").is_file()
    assert not same(adapter(config.run_dir), before)
    assert not (config.run_dir / "laplace").exists()


def test_a_changed_fit_must_be_evaluated_again(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = "laplace.prior=evidence"
    for name, other in (
        *(("evaluate", change), ("package", change)),
        *(("package", "calibration.coverage=0.8"), ("package", "predictives.conditioned=false")),
    ):
        assert job(name, run_copy, other) == 1
        assert "run 'python -m training fit' again" in capsys.readouterr().err, other
    assert job("fit", run_copy, change) == 0
    for other in (change, "evaluation.report_texts=true"):
        assert job("package", run_copy, other) == 1
        assert "run 'python -m training evaluate' again" in capsys.readouterr().err, other


def test_squared_distances_are_from_where_training_began(sentiment_run: FinishedRun) -> None:
    """PEFT starts A at random and B at zero."""
    start = load_file(sentiment_run.config.run_dir / "initial_adapter" / "adapter_model.safetensors")
    assert all(bool((tensor != 0).any()) == (".lora_A." in name) for name, tensor in start.items())
    recorded, end = fit_record(sentiment_run.config)["squared_distances"], adapter(sentiment_run.config.run_dir)
    assert len(recorded) == len(end)
    for name, value in recorded.items():
        key = f"base_model.model.{name}.weight"
        assert value == pytest.approx(float(torch.dist(end[key].double(), start[key].double())) ** 2, rel=1e-9)
        assert value > 0


def test_training_that_diverges_is_an_error(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job("finetune", run_copy, "name=diverging", "optimizer.learning_rate=1e30", "optimizer.steps=4") == 1
    assert "NaN or infinite weights: lower optimizer.learning_rate" in capsys.readouterr().err
    assert not list(run_copy.parent.glob("runs/diverging*/adapter"))


@pytest.mark.parametrize(
    ("base", "number"), [("quantization=none", torch.inf), ("quantization=nf4 base.dequantize=false", torch.nan)]
)
def test_a_base_that_is_not_a_number_is_refused_before_training(
    run_copy: Path, sentiment_run: FinishedRun, base: str, number: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hours of training would end in NaN; in packed 4-bit weights a NaN is in the scale of its block only."""
    broken = Path(shutil.copytree(sentiment_run.base, run_copy.parent / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = number
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelTrainer, "train", None)
        assert job("finetune", run_copy, f"base.model={broken}", *f"base.{base}".split()) == 1
    assert "holds NaN or infinity in model.layers.1.mlp.down_proj.weight" in capsys.readouterr().err


# Fit.


def test_an_interrupted_fit_ends_like_an_uninterrupted_one(
    run_copy: Path, sentiment_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two passes of five batches; bit for bit, because sums are kept in the number format that they are made in."""
    original, seen = passes.contrast_jacobians, [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        seen[0] += 1
        if seen[0] == 9:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(passes, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(passes, "contrast_jacobians", counted)
    config, whole = load_config(run_copy), sentiment_run.config
    shutil.rmtree(config.run_dir / "laplace")
    assert job("fit", run_copy) == 130
    assert job("fit", run_copy) == 0
    assert seen == [9 + 10 - 8]
    for name in ("posterior.safetensors", "calibration.safetensors"):
        assert same(*(load_file(one.run_dir / "laplace" / name) for one in (config, whole))), name
    assert fit_record(config) == fit_record(whole)
    other = ("laplace.prior=evidence", "laplace.granularity=group")
    assert job("fit", run_copy, *other) == 0
    assert seen == [11]
    served = fit_record(load_config(run_copy, list(other)))["served"]
    assert (served["method"], served["prior"]["granularity"]) == ("evidence", "group")


def test_another_posterior_and_prior_are_served(run_copy: Path) -> None:
    """From the fit to the golden answers that the loaded artifact repeats."""
    overrides = ("laplace.structure=kfac_reduce", "laplace.subset=regex:lora_B$", "laplace.granularity=group")
    golden = "golden_inputs=[{text: first one}, {text: second one}]"
    for name in ("fit", "evaluate", "package"):
        assert job(name, run_copy, *overrides, golden) == 0
    config = load_config(run_copy, list(overrides))
    recorded = json.loads((config.artifact_dir / "golden.json").read_text())
    assert [a["inputs"] for a in recorded["answers"]] == [{"text": "first one"}, {"text": "second one"}]
    metadata = safe_open(config.run_dir / "laplace" / "posterior.safetensors", framework="pt").metadata()
    assert metadata["structure"] == "kfac_reduce"
    assert {block.rpartition(".")[2] for block in json.loads(metadata["blocks"])} == {"lora_B"}
    served = fit_record(config)["served"]
    assert (served["method"], served["prior"]["granularity"]) == ("validation", "group")
    predictor = Predictor.load(config.artifact_dir, device="cpu")
    assert predictor.artifact.manifest.prior.precision == served["prior"]["precision"]
    (answer,) = predictor.predict([predictor.encode({"text": "Dull."}, truncate=False)], "laplace")
    assert answer.logit_variance is not None
    assert min(answer.logit_variance) > 0


# Evaluate and package.


def test_every_method_is_measured_on_every_test_row_and_against_temperature_scaling(sentiment_run: FinishedRun) -> None:
    report, manifest = sentiment_run.artifact / "report", read_artifact(sentiment_run.artifact).manifest
    evaluation = json.loads((report / "evaluation.json").read_text())
    assert list(evaluation)[:5] == ["zero_shot", "map", "temperature", "conditioned", "laplace"]
    assert set(evaluation) >= {"laplace_evidence_scalar", "laplace_evidence_group", "laplace_validation_group"}
    assert {e["rows"] for e in evaluation.values()} == {24}
    # scaling logits by one number moves no decision
    assert evaluation["temperature"]["accuracy"] == evaluation["map"]["accuracy"]
    assert evaluation["zero_shot"]["nll"] != evaluation["map"]["nll"]
    gains = {name: values["less_temperature"] for name, values in evaluation.items() if "less_temperature" in values}
    assert gains.keys() == {manifest.recommended.predictive} == {"laplace"}
    assert "NLL of laplace less that of temperature scaling: " in (report / "results.md").read_text(encoding="utf-8")
    difference = evaluation["laplace"]["nll"] - evaluation["temperature"]["nll"]
    assert gains["laplace"]["nll"] == pytest.approx(difference, abs=1e-6)
    low, high = gains["laplace"]["interval"]
    assert low <= difference <= high


# What is refused, and how it is said.


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("fit", ["name=fresh"], "no trained adapter in .*: run 'python -m training finetune' first"),
        ("package", ["name=fresh"], "no fitted posterior in .*: run 'python -m training fit' first"),
        ("run", ["data.path=nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        ("run", ["data.calibration=0"], "the calibration split is empty"),
        ("run", ["data.test=0"], "the test split is empty"),
        (
            "run",
            ["data.labels=[so bad, positive]", "data.label_map={negative: so bad, positive: positive}"],
            "label ' so bad' must be one token after the prompt",
        ),
        ("run", ["golden_inputs=[{txet: x}]"], "golden_inputs.0: inputs have the fields"),
        ("run", ["golden_inputs=[" + "{text: x}, " * 65 + "]"], "golden_inputs: expected at most 64, got 65"),
        ("run", ["base.model=/nowhere"], "base model '/nowhere': no tokenizer can be loaded"),
        ("run", ["base.device=gpu"], "no device is called 'gpu'"),
    ],
)
def test_a_job_that_cannot_run_says_why(
    run_copy: Path, name: str, overrides: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Status 1 and the reason on stderr, without a traceback, before anything is trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelTrainer, "train", None)
        assert job(name, run_copy, *overrides) == 1
    printed = capfd.readouterr()
    assert printed.err.startswith("error: ")
    assert re.search(message, printed.err)
    assert "Traceback" not in printed.err
    assert "Review:" not in printed.err


def test_a_bound_on_rows_of_groups_is_refused_before_training(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LabelTrainer, "train", None)
    threads = write_rows(tmp_path / "threads.jsonl", [row | {"of": i // 2} for i, row in enumerate(sentiment_rows())])
    assert job("run", run_copy, f"data.path={threads}", "data.groups=of", "calibration.guarantee=upper_bound") == 1
    assert "error: guarantee upper_bound counts independent rows" in capfd.readouterr().err
