"""The study on a tiny model: every alternative from one store, as the jobs would compute it, resumed and shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from synthetic_study import empty_docs, page_of
from tiny_runs import choice_rows, save_tiny_base, write_rows

from benchmarks.study import job
from benchmarks.study.__main__ import main
from benchmarks.study.compute import alternatives, methods
from benchmarks.study.compute.methods import STRUCTURE_ROWS
from benchmarks.study.compute.posteriors import fit_stored, project_stored
from benchmarks.study.config import StudyConfig, load_study
from benchmarks.study.gather import by_classes_and_length, gather
from benchmarks.study.results.records import read_records
from benchmarks.study.store import read_stores
from benchmarks.study.structures import fit_posterior
from laplora.errors import ConfigError, PriorError
from laplora.jacobians.contrasts import contrast_jacobians
from laplora.linearised import class_probs
from laplora.models.adapters import attach_adapter
from laplora.posterior.base import Prior
from laplora.posterior.passes import StructureSettings
from laplora.prior.search import PriorChoice
from training.workspace.run import Run
from training.workspace.runtime import open_run


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of one task and seed, its Jacobians kept; its configuration names a second seed."""
    folder = tmp_path_factory.mktemp("study")
    base = save_tiny_base(folder / "base")
    questions = write_rows(folder / "questions.jsonl", choice_rows())
    rows = {"train": 24, "calibration": 24, "test": 20, "split_seed": 0, "dataset": "file", "path": str(questions)}
    config: dict[str, Any] = {
        "seeds": [0],
        "base": {"model": str(base), "quantization": "none", "dtype": "float32", "device": "cpu"},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": ["q_proj", "v_proj"]},
        "optimizer": {"learning_rate": 1e-2, "steps": 8, "batch_size": 6},
        "rank": 3,
        "joint_rank": 8,
        "batch_size": 5,
        "runs": str(folder / "runs"),
        "tasks": {
            "questions": {
                "data": rows | {"template": "multiple_choice", "labels": ["A", "B", "C"]},
            },
        },
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["--config", str(file), "--keep-jacobians"]) == 0
    file.write_text(yaml.safe_dump(config | {"seeds": [0, 3]}), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def study(study_file: Path) -> StudyConfig:
    return load_study(study_file).model_copy(update={"seeds": (0,)})


@pytest.fixture
def other(study: StudyConfig) -> StudyConfig:
    """The same study under another learning rate."""
    return study.model_copy(update={"optimizer": study.optimizer.model_copy(update={"learning_rate": 2e-2})})


def trained(study: StudyConfig) -> tuple[Run, Any]:
    """Return the run and its fine-tuned model."""
    settings = study.run_config("questions", 0)
    run = open_run(settings)
    return run, attach_adapter(run.load_base(), settings.run_dir / "adapter")


def test_every_alternative_gives_probabilities_of_every_test_row(study: StudyConfig) -> None:
    folder = study.folder("questions", 0)
    result = json.loads((folder / "result.json").read_text())
    tensors = load_file(folder / "predictions.safetensors")
    wanted = {"map", "temperature", *STRUCTURE_ROWS}
    wanted |= {"laplace_evidence_scalar", "laplace_evidence_group", "laplace_validation_group"}
    wanted |= {"laplace_ekfac_evidence_scalar", "laplace_ekfac_evidence_module", "laplace_loo"}
    assert wanted == set(result["methods"])
    mask = tensors["class_mask"]
    for name in result["methods"]:
        probs = tensors[f"probs.{name}"]
        assert probs.shape == mask.shape
        torch.testing.assert_close(probs.sum(1), torch.ones(len(mask), dtype=torch.float64))
        assert bool((probs[~mask] == 0).all())
    assert result["recommended"] in result["methods"]


def test_the_store_holds_what_the_model_gives(study: StudyConfig) -> None:
    run, model = trained(study)
    stores = read_stores(study.folder("questions", 0))
    rows = run.encode(run.splits.test)
    for index in by_classes_and_length(rows, 4):
        batch = run.collate([rows[i] for i in index])
        direct = contrast_jacobians(model, batch, run.readout, stores.blocks)
        mask = batch.class_mask
        torch.testing.assert_close(
            class_probs(stores.test.logits[index], mask), class_probs(direct.logits, mask), rtol=1e-4, atol=1e-6
        )
        # Contrasts beyond a row's classes are left at 0; stored in bfloat16, 8 bits.
        possible = mask.sum(1).max() - 1
        flat = torch.cat([b.jacobian.flatten(2) for b in direct.blocks], 2)[:, :possible]
        close = stores.test.jacobians[index][:, :possible].float()
        assert float((close - flat).norm() / flat.norm()) < 4e-3
        assert bool((stores.test.jacobians[index][:, possible:] == 0).all())


@pytest.mark.parametrize("structure", ["ekfac", "kfac_reduce", "kfac_last", "kfac_expand", "joint_core"])
def test_a_structure_fitted_from_the_store_is_the_one_fitted_from_the_model(study: StudyConfig, structure: str) -> None:
    run, model = trained(study)
    stores = read_stores(study.folder("questions", 0))
    blocks, rows = stores.blocks, run.encode(run.splits.train)
    settings = StructureSettings(structure, rank=3)

    def from_model(title: str, state: Any, add: Any) -> Any:
        for start in range(0, len(rows), 7):
            batch = run.collate(rows[start : start + 7])
            jacobians = contrast_jacobians(model, batch, run.readout, blocks, tokens=True)
            state = add(state, jacobians, batch.class_mask)
        return state

    fits = (fit_posterior(settings, blocks, from_model), fit_stored(stores, settings, blocks))
    precisions = torch.full((len(blocks),), 10.0, dtype=torch.float64)
    one, two = (p.covariance(project_stored(stores, p, stores.test), precisions) for p in fits)
    # bfloat16 Jacobians: 1e-2 covers their rounding in a variance, and a structure mixed up is off by far more.
    torch.testing.assert_close(one, two, rtol=2e-2, atol=1e-4 * float(one.abs().max()))


def test_finished_work_is_not_done_again(
    study: StudyConfig, other: StudyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (study.folder("questions", 0) / "result.json").stat().st_mtime_ns
    job.run_study(study)
    assert (study.folder("questions", 0) / "result.json").stat().st_mtime_ns == before
    assert "==" not in capsys.readouterr().out
    assert not job.finished(other, "questions", 0)


def test_a_prior_that_cannot_be_chosen_leaves_only_its_row_out(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PriorError("at no precision")

    monkeypatch.setattr(methods, "choose_by_leave_one_out", refuse)
    lines: list[str] = []
    names = set(methods.compute(study, read_stores(study.folder("questions", 0)), 0, lines.append))
    assert "laplace_loo" not in names
    assert {"laplace_exact", "laplace_evidence_scalar"} <= names
    assert any("no leave-one-out prior: at no precision" in line for line in lines)


def test_two_processes_do_not_work_on_one_task(tmp_path: Path) -> None:
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


def test_the_ready_study_names_the_promised_tasks() -> None:
    config = load_study(Path(__file__).resolve().parents[3] / "benchmarks" / "study" / "configs" / "smollm2.yaml")
    assert {"sst2", "winogrande_s", "openbookqa", "boolq", "arc_easy", "arc_challenge", "rte"} <= set(config.tasks)
    run = config.run_config("sst2", 1)
    assert (run.seed, run.data.split_seed) == (1, 0)


def test_a_bad_study_names_every_bad_field(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("seeds: []\ntasks: {}\ncolour: red\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="3 bad field") as caught:
        load_study(file)
    assert "colour" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(tmp_path / "none.yaml")


def test_structures_are_compared_with_the_exact_posterior_and_published(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = empty_docs(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["--config", str(study_file), "--publish"]) == 0
    assert main(["--config", str(study_file), "--approximation", "questions", "0", "--rows", "12"]) == 0
    exact, *others = read_records(docs / "results")["variants"]
    assert (exact["structure"], exact["subset"], exact["per_block"], exact["rows"]) == ("exact", "all", False, 12)
    # The same posterior fitted twice: equal but for the order of sums.
    assert exact["correlation"] == pytest.approx(1, abs=1e-6)
    assert exact["ratio"] == pytest.approx(1, abs=1e-6)
    # A part of the parameters has a part of the variance.
    subsets = [v for v in others if v["structure"] == "exact" and v["subset"] != "all"]
    assert all(0 < v["ratio"] < 1 + 1e-6 for v in subsets)
    assert "| KFAC-reduce | full | - |" in page_of(docs)
    assert "| ⚠ exact GGN, last layer | - | - |" in page_of(docs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["questions", "3"], "train.jacobians.safetensors, calibration.jacobians.safetensors"),
        (["questions", "3"], "python -m benchmarks.study --keep-jacobians"),
        (["questions", "1"], "its seeds 0, 3"),
        (["other", "0"], "its tasks are questions"),
        (["questions", "0", "--rows", "1"], "at least two rows"),
        (["questions", "0"], "questions, seed 0: on these calibration rows"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    study_file: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never = PriorChoice(Prior("scalar", {"all": 1e12}), "validation", 0.0, ("all",))
    monkeypatch.setattr(alternatives, "choose_by_validation", lambda *_: never)
    assert main(["--config", str(study_file), "--approximation", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_another_configuration_uses_nothing_that_was_gathered(study: StudyConfig, other: StudyConfig) -> None:
    """Last in this file: it replaces what the other tests read."""
    stored = study.folder("questions", 0) / "test.safetensors"
    before = stored.stat().st_mtime_ns
    gather(study, "questions", 0)
    assert stored.stat().st_mtime_ns == before
    gather(other, "questions", 0)
    assert stored.stat().st_mtime_ns != before
