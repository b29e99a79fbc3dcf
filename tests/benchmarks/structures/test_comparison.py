"""The comparison of structures: a tiny model's from training to the page, and the published page itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from documents import ROOT
from tiny_runs import choice_rows, save_tiny_base, write_rows

from benchmarks.structures.__main__ import main
from benchmarks.structures.compare import VARIANTS
from benchmarks.structures.curvature import fit_posterior
from benchmarks.structures.fits import fit_gathered, project_gathered
from benchmarks.structures.gather import gather
from benchmarks.structures.publish import publish, read_records
from benchmarks.structures.rows import Gathered
from laplora.jacobians.contrasts import contrast_jacobians
from laplora.models.adapters import attach_adapter
from laplora.posterior.passes import StructureSettings
from training.config import load_config
from training.workspace.run import Run
from training.workspace.runtime import open_run

MARKERS = "# Results\n\n<!-- structures:begin approximation -->\n<!-- structures:end approximation -->\n"


@dataclass(frozen=True)
class Compared:
    """A tiny run of rows of two and of three choices that was compared, and where its page is."""

    file: Path
    docs: Path

    @property
    def trained(self) -> tuple[Run, Any]:
        """The run and its fine-tuned model."""
        run = open_run(load_config(self.file))
        return run, attach_adapter(run.load_base(), run.config.run_dir / "adapter")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("structures")
    questions = write_rows(folder / "questions.jsonl", choice_rows())
    rows = {"train": 24, "calibration": 24, "test": 20, "split_seed": 0, "dataset": "file", "path": str(questions)}
    config: dict[str, Any] = {
        "name": "questions",
        "base": {"model": str(save_tiny_base(folder / "base")), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]},
        "optimizer": {"learning_rate": 1e-2, "steps": 8, "batch_size": 6},
        "data": rows | {"template": "multiple_choice", "labels": ["A", "B", "C"]},
        "runs": str(folder / "runs"),
    }
    config["base"]["device"] = "cpu"
    found = Compared(folder / "run.yaml", folder / "docs")
    found.file.write_text(yaml.safe_dump(config), encoding="utf-8")
    (found.docs / "results").mkdir(parents=True)
    (found.docs / "results.md").write_text(MARKERS, encoding="utf-8")
    (found.docs / "results" / "structures.json").write_text("[]", encoding="utf-8")
    assert main([str(found.file), "--docs", str(found.docs)]) == 0
    return found


@pytest.fixture(scope="module")
def gathered(compared: Compared) -> Gathered:
    return gather(load_config(compared.file), 100)


def test_every_variant_is_held_against_the_exact_posterior(compared: Compared) -> None:
    records = read_records(compared.docs / "results")
    assert [(r["structure"], r["subset"], r["per_block"]) for r in records] == [
        (v.structure, v.subset, v.per_block) for v in VARIANTS
    ]
    exact, *others = records
    assert (exact["rows"], exact["correlation"], exact["ratio"]) == (20, pytest.approx(1), pytest.approx(1))
    assert all(0 < r["ratio"] < 1e3 and -1 <= r["correlation"] <= 1 for r in others)
    joint = [r["correlation"] for r in records if r["structure"] == "joint"]
    assert joint == pytest.approx(sorted(joint), abs=1e-3)
    assert joint[-1] > 0.999, "of a rank that leaves nothing out it is the exact one"
    assert "| ELLA | - | 50 |" in (compared.docs / "results.md").read_text(encoding="utf-8")


def test_what_was_gathered_is_what_the_model_gives(compared: Compared, gathered: Gathered) -> None:
    """In bfloat16, 8 bits; contrasts with classes that a row cannot have are left at 0."""
    run, model = compared.trained
    rows = run.encode(run.splits.test)
    batch = run.collate(rows)
    direct = contrast_jacobians(model, batch, run.readout, gathered.blocks)
    flat = torch.cat([b.jacobian.flatten(2) for b in direct.blocks], 2)
    possible = batch.class_mask[:, 1:]
    found = gathered.test.jacobians.float()
    assert float((found - flat)[possible].norm() / flat[possible].norm()) < 4e-3
    assert bool((found[~possible] == 0).all())
    assert torch.equal(gathered.test.class_mask, batch.class_mask)


@pytest.mark.parametrize("structure", ["ekfac", "kfac_reduce", "kfac_last", "kfac_expand", "joint_core", "exact"])
def test_a_structure_fitted_from_what_was_gathered_is_the_one_from_the_model(
    compared: Compared, gathered: Gathered, structure: str
) -> None:
    run, model = compared.trained
    rows, settings = run.encode(run.splits.train), StructureSettings(structure, rank=3)

    def from_model(_title: str, state: Any, add: Any) -> Any:
        for start in range(0, len(rows), 7):
            batch = run.collate(rows[start : start + 7])
            jacobians = contrast_jacobians(model, batch, run.readout, gathered.blocks, tokens=True)
            state = add(state, jacobians, batch.class_mask)
        return state

    fits = fit_posterior(settings, gathered.blocks, from_model), fit_gathered(gathered, settings, gathered.blocks)
    precisions = torch.full((len(gathered.blocks),), 10.0, dtype=torch.float64)
    one, two = (p.covariance(project_gathered(gathered, p, gathered.test), precisions) for p in fits)
    # bfloat16 Jacobians: 1e-2 covers their rounding in a variance, and a structure mixed up is off by far more.
    torch.testing.assert_close(one, two, rtol=2e-2, atol=1e-4 * float(one.abs().max()))


def test_a_seed_is_replaced_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results.md").write_text(MARKERS, encoding="utf-8")
    (tmp_path / "results" / "structures.json").write_text("[]", encoding="utf-8")
    records = [r for r in read_records(ROOT / "docs" / "results") if r["task"] == "sst2"]
    for seed, ratio in ((1, 2.0), (0, 3.0), (1, 4.0)):
        publish([r | {"seed": seed, "ratio": ratio} for r in records], tmp_path)
    found = read_records(tmp_path / "results")
    assert {(r["seed"], r["ratio"]) for r in found} == {(0, 3.0), (1, 4.0)}
    assert len(found) == 2 * len(records)
