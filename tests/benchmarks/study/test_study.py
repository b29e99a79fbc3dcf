"""The study on a tiny model: every alternative from one store, as the jobs would compute it, resumed and shared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_runs import choice_rows, save_tiny_base, sentiment_rows, write_rows

from benchmarks.study import job
from benchmarks.study.__main__ import main
from benchmarks.study.compute import approximation, methods
from benchmarks.study.compute.methods import STRUCTURE_ROWS, read_stores
from benchmarks.study.compute.posteriors import StoredPass, project_stored
from benchmarks.study.config import StudyConfig, load_study
from benchmarks.study.gather import by_classes_and_length, gather
from benchmarks.study.store import read_gathered, read_store, replay
from benchmarks.study.structures import fit_posterior
from laplora.errors import ConfigError, PriorError
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import class_probs
from laplora.models.adapters import attach_adapter
from laplora.posterior.base import Prior
from laplora.posterior.passes import StructureSettings
from laplora.prior.search import PriorChoice
from training.workspace.runtime import open_run


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """A finished study of two tasks and one seed, its Jacobians kept."""
    folder = tmp_path_factory.mktemp("study")
    base = save_tiny_base(folder / "base")
    reviews = write_rows(folder / "reviews.jsonl", sentiment_rows())
    questions = write_rows(folder / "questions.jsonl", choice_rows())
    rows = {"train": 24, "calibration": 24, "test": 20, "split_seed": 0, "dataset": "file"}
    config: dict[str, Any] = {
        "seeds": [0],
        "base": {"model": str(base), "quantization": "none", "dtype": "float32", "device": "cpu"},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": ["q_proj", "v_proj"]},
        "optimizer": {"learning_rate": 1e-2, "steps": 8, "batch_size": 6},
        "members": 3,
        "dropout_samples": 2,
        "rank": 3,
        "joint_rank": 8,
        "batch_size": 5,
        "runs": str(folder / "runs"),
        "tasks": {
            "reviews": {
                "data": rows | {"path": str(reviews), "template": "sentiment", "labels": ["negative", "positive"]}
            },
            "questions": {
                "data": rows | {"path": str(questions), "template": "multiple_choice", "labels": ["A", "B", "C"]},
                "orders": True,
            },
        },
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["--config", str(file), "--keep-jacobians"]) == 0
    return load_study(file)


@pytest.mark.parametrize("task", ["reviews", "questions"])
def test_every_alternative_gives_probabilities_of_every_test_row(study: StudyConfig, task: str) -> None:
    folder = study.folder(task, 0)
    result = json.loads((folder / "result.json").read_text())
    tensors = load_file(folder / "predictions.safetensors")
    wanted = {"map", "temperature", "ensemble", "ensemble_temperature", "mc_dropout", *STRUCTURE_ROWS}
    wanted |= {"laplace_temperature", "laplace_evidence_scalar", "laplace_evidence_group", "laplace_validation_group"}
    wanted |= {"laplace_ekfac_evidence_scalar", "laplace_ekfac_evidence_module", "laplace_loo"}
    wanted |= {"order_average", "order_average_temperature"} if task == "questions" else set()
    assert wanted <= set(result["methods"])
    assert {f"probs.{m}" for m in result["methods"]} <= set(tensors)
    mask = tensors["class_mask"]
    for name in result["methods"]:
        probs = tensors[f"probs.{name}"]
        assert probs.shape == mask.shape
        torch.testing.assert_close(probs.sum(1), torch.ones(len(mask), dtype=torch.float64))
        assert bool((probs[~mask] == 0).all())
    assert result["recommended"] in result["methods"]


def test_the_store_holds_what_the_model_gives(study: StudyConfig) -> None:
    folder = study.folder("questions", 0)
    run_config = study.run_config("questions", 0)
    run = open_run(run_config)
    model = attach_adapter(run.load_base(), run_config.run_dir / "adapter")
    blocks = find_blocks(model, run.class_count)
    stored = read_store(folder, "test")
    rows = run.encode(run.splits.test)
    for index in by_classes_and_length(rows, 4):
        batch = run.collate([rows[i] for i in index])
        direct = contrast_jacobians(model, batch, run.label_ids, blocks)
        mask = batch.class_mask
        torch.testing.assert_close(
            class_probs(stored.logits[index], mask), class_probs(direct.logits, mask), rtol=1e-4, atol=1e-6
        )
        # Contrasts beyond a row's classes are left at 0; stored in bfloat16, 8 bits.
        possible = mask.sum(1).max() - 1
        flat = torch.cat([b.jacobian.flatten(2) for b in direct.blocks], 2)[:, :possible]
        close = stored.jacobians[index][:, :possible].float()
        assert float((close - flat).norm() / flat.norm()) < 4e-3
        assert bool((stored.jacobians[index][:, possible:] == 0).all())


@pytest.mark.parametrize("structure", ["ekfac", "kfac_reduce", "kfac_last", "kfac_expand", "joint_core"])
def test_a_structure_fitted_from_the_store_is_the_one_fitted_from_the_model(study: StudyConfig, structure: str) -> None:
    folder = study.folder("reviews", 0)
    blocks = tuple(Block(**b) for b in read_gathered(folder)["blocks"])
    run_config = study.run_config("reviews", 0)
    run = open_run(run_config)
    model = attach_adapter(run.load_base(), run_config.run_dir / "adapter")
    rows = run.encode(run.splits.train)
    settings = StructureSettings(structure, rank=3)

    def from_model(title: str, state: Any, add: Any) -> Any:
        for start in range(0, len(rows), 7):
            batch = run.collate(rows[start : start + 7])
            jacobians = contrast_jacobians(model, batch, run.label_ids, blocks, tokens=True)
            state = add(state, jacobians, batch.class_mask)
        return state

    train, test = read_store(folder, "train"), read_store(folder, "test")
    direct = fit_posterior(settings, blocks, from_model)
    stored = fit_posterior(settings, blocks, StoredPass(train, blocks, blocks, structure))
    precisions = torch.full((len(blocks),), 10.0, dtype=torch.float64)
    one, two = (p.covariance(project_stored(p, test, blocks), precisions) for p in (direct, stored))
    # bfloat16 Jacobians: 1e-2 covers their rounding in a variance, and a structure mixed up is off by far more.
    torch.testing.assert_close(one, two, rtol=2e-2, atol=1e-4 * float(one.abs().max()))


def test_finished_work_is_not_done_again(study: StudyConfig, capsys: pytest.CaptureFixture[str]) -> None:
    before = (study.folder("reviews", 0) / "result.json").stat().st_mtime_ns
    job.run_study(study)
    assert (study.folder("reviews", 0) / "result.json").stat().st_mtime_ns == before
    assert "==" not in capsys.readouterr().out


def test_an_average_asked_for_later_is_added_without_jacobians(study: StudyConfig, tmp_path: Path) -> None:
    shutil.copytree(study.runs / study.name, tmp_path / study.name)
    late = study.model_copy(update={"runs": tmp_path})
    folder = late.folder("questions", 0)
    before = load_file(folder / "predictions.safetensors")
    for path in (*folder.glob("*.jacobians.safetensors"), *folder.glob("dropout.*"), *folder.glob("orders.*")):
        path.unlink()
    added = ("mc_dropout", "mc_dropout_temperature", "order_average", "order_average_temperature")
    save_file({k: v for k, v in before.items() if k.split(".")[-1] not in added}, folder / "predictions.safetensors")
    result = json.loads((folder / "result.json").read_text())
    described = {name: result["methods"].pop(name) for name in added}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert not job.finished(late, "questions", 0)
    job.run_study(late)
    assert job.finished(late, "questions", 0)
    after = load_file(folder / "predictions.safetensors")
    assert after.keys() == before.keys()
    for name, values in before.items():
        torch.testing.assert_close(after[name], values, rtol=0, atol=1e-6)
    methods = json.loads((folder / "result.json").read_text())["methods"]
    for name in added:
        assert methods[name] | {"seconds": 0} == described[name] | {"seconds": 0}


def test_a_prior_that_cannot_be_chosen_leaves_only_its_own_row_out(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PriorError("at no precision")

    monkeypatch.setattr(methods, "choose_by_leave_one_out", refuse)
    folder = study.folder("reviews", 0)
    found = read_gathered(folder)
    stores = read_stores(folder, tuple(Block(**b) for b in found["blocks"]), found["squared_distances"])
    said: list[str] = []
    names = set(methods.compute(study, stores, 0, said.append))
    assert "laplace_loo" not in names
    assert {"laplace_exact", "laplace_evidence_scalar"} <= names
    assert any("no leave-one-out prior: at no precision" in line for line in said)


def test_posteriors_are_not_compared_where_all_are_alike(study: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    never = PriorChoice(Prior("scalar", {"all": 1e12}), "validation", 0.0, ("all",))
    monkeypatch.setattr(approximation, "choose_by_validation", lambda *_: never)
    with pytest.raises(ConfigError, match=r"reviews, seed 0: .* 1e\+12, where all posteriors are alike"):
        approximation.compare(study, "reviews", 0, 8)


def test_predictions_of_another_configuration_are_not_finished(study: StudyConfig) -> None:
    assert job.finished(study, "reviews", 0)
    other = study.model_copy(update={"optimizer": study.optimizer.model_copy(update={"learning_rate": 2e-2})})
    assert not job.finished(other, "reviews", 0)


def test_two_processes_do_not_work_on_one_task(study: StudyConfig, tmp_path: Path) -> None:
    with job.claim(tmp_path) as first, job.claim(tmp_path) as second:
        assert first
        assert not second
    with job.claim(tmp_path) as again:
        assert again


def test_predictions_can_be_made_again_from_the_store_alone(study: StudyConfig) -> None:
    folder = study.folder("questions", 0)
    before = load_file(folder / "predictions.safetensors")
    job.predict(study, "questions", 0)
    after = load_file(folder / "predictions.safetensors")
    assert before.keys() == after.keys()
    for name, values in before.items():
        torch.testing.assert_close(after[name], values, rtol=0, atol=1e-12)


def test_the_replay_gives_rows_in_order(study: StudyConfig) -> None:
    folder = study.folder("questions", 0)
    found = read_gathered(folder)
    blocks = tuple(Block(**b) for b in found["blocks"])
    stores = read_stores(folder, blocks, found["squared_distances"])
    batches = list(replay(stores.test, blocks, 3))
    assert torch.equal(torch.cat([j.logits for j, _ in batches]), stores.test.logits)
    flat = torch.cat([torch.cat([b.jacobian.flatten(2) for b in j.blocks], 2) for j, _ in batches])
    assert torch.equal(flat, stores.test.jacobians.float())


def test_the_ready_study_loads_and_names_the_promised_tasks() -> None:
    config = load_study(Path(__file__).resolve().parents[3] / "benchmarks" / "study" / "configs" / "smollm2.yaml")
    assert {"sst2", "winogrande_s", "openbookqa", "boolq", "arc_easy", "arc_challenge", "rte"} <= set(config.tasks)
    assert len(config.tasks) >= 8
    assert len(config.seeds) == 3
    run = config.run_config("sst2", 1)
    assert run.seed == 1
    assert run.data.split_seed == 0


def test_a_bad_study_names_every_bad_field(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("seeds: []\ntasks: {}\ncolour: red\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="3 bad field") as caught:
        load_study(file)
    assert "colour" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(tmp_path / "none.yaml")


def test_another_configuration_uses_nothing_that_was_gathered(study: StudyConfig) -> None:
    before = (study.folder("reviews", 0) / "test.safetensors").stat().st_mtime_ns
    gather(study, "reviews", 0)
    assert (study.folder("reviews", 0) / "test.safetensors").stat().st_mtime_ns == before
    other = study.model_copy(update={"optimizer": study.optimizer.model_copy(update={"learning_rate": 2e-2})})
    gather(other, "reviews", 0)
    assert (study.folder("reviews", 0) / "test.safetensors").stat().st_mtime_ns != before
    gather(study, "reviews", 0)  # the other tests' store again
