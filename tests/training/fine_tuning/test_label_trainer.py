"""What a configuration may say of the fine-tuning loop: the step that is kept, batches, and LoRA+."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from alike_runs import read
from tiny_runs import adapter, job, same, sentiment_config
from transformers.models.llama.modeling_llama import LlamaMLP

from laplora.errors import NonFiniteError
from laplora.fitting.saving import read_fit
from laplora.models.adapters import attach_adapter
from laplora.predictor import Predictor
from training.config import RunConfig, load_config
from training.fine_tuning.label_trainer import LabelTrainer, LengthGrouped
from training.finetune import finetune
from training.workspace.runtime import open_run
from training.workspace.targets import labelled_targets, target_loss

pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")

SHORT = {"learning_rate": 1e-2, "steps": 24, "batch_size": 6, "checkpoint_every": 8}
SELECTING = SHORT | {"evaluate_every": 4, "selection_fraction": 0.25}
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.1}

# The step that is kept.


@pytest.fixture(scope="module")
def selecting(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> RunConfig:
    """A fine-tune with dropout that evaluates every 4 steps, and that nothing stopped."""
    file = sentiment_config(tmp_path_factory.mktemp("whole"), tiny_base_folder, optimizer=SELECTING, adapter=DROPOUT)
    assert job("finetune", file) == 0
    return load_config(file)


def test_the_adapter_of_the_step_with_the_least_loss_on_rows_of_no_other_split_is_kept(selecting: RunConfig) -> None:
    """To 1e-4: other batches, and the rounding of float32."""
    losses = {r["step"]: r["eval_loss"] for r in read(selecting.run_dir / "training_log.json") if "eval_loss" in r}
    assert list(losses) == [4, 8, 12, 16, 20, 24]
    selected = read(selecting.run_dir / "selected.json")
    assert (selected["step"], selected["rows"]) == (min(losses, key=losses.__getitem__), 10)
    assert selected["nll"] == pytest.approx(min(losses.values()))
    run = open_run(selecting)
    splits = run.splits
    parts = (splits.train, splits.selection, splits.calibration, splits.test)
    assert [len(part) for part in parts] == [30, 10, 32, 24]
    assert len({e.id for part in parts for e in part}) == 96
    assert read(selecting.run_dir / "splits.json")["rows"]["selection"] == 10
    model = attach_adapter(run.load_base(), selecting.run_dir / "adapter")
    rows, labels = zip(*labelled_targets(run, splits.selection), strict=True)
    batch = run.collate(rows)
    with torch.no_grad():
        loss = target_loss(run.readout.scores(model, batch).logits, torch.stack(labels), batch.class_mask)
    assert float(loss) == pytest.approx(selected["nll"], abs=1e-4)


def test_a_loss_that_is_no_number_is_not_left_out(tiny_base_folder: Path, tmp_path: Path) -> None:
    """Where one batch of the selection rows has one: the mean of the others says nothing of the step."""
    file, compute = sentiment_config(tmp_path, tiny_base_folder, optimizer=SELECTING), LabelTrainer.compute_loss
    evaluated = count()

    def broken(self: LabelTrainer, model: Any, *arguments: Any, **options: Any) -> Any:
        found = compute(self, model, *arguments, **options)
        return found if model.training or next(evaluated) else (found[0] * torch.nan, *found[1:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelTrainer, "compute_loss", broken)
        with pytest.raises(NonFiniteError, match="a loss on selection rows is NaN or infinite"):
            finetune(load_config(file))


@pytest.mark.exhaustive
def test_the_state_of_random_numbers_is_whole_or_not_there(
    selecting: RunConfig, tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed while it is written, and a checkpoint of which something else has left half of it."""
    file = sentiment_config(tmp_path, tiny_base_folder, optimizer=SELECTING, adapter=DROPOUT)
    save = torch.save

    def killed(value: Any, where: Any, **options: Any) -> None:
        if "rng_state" in str(where) and "checkpoint-8" in str(where):
            Path(where).write_bytes(b"PK")
            raise KeyboardInterrupt
        save(value, where, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", killed)
        assert job("finetune", file) == 130
    checkpoints = load_config(file).run_dir / "checkpoints"
    assert not list((checkpoints / "checkpoint-8").glob("rng_state*"))
    assert (checkpoints / "checkpoint-4" / "rng_state.pth").is_file()
    whole = (checkpoints / "checkpoint-4" / "rng_state.pth").read_bytes()
    (checkpoints / "checkpoint-4" / "rng_state.pth").write_bytes(whole[: len(whole) // 2])
    assert job("finetune", file) == 1
    said = capsys.readouterr()
    assert "checkpoint-4: the state of the random numbers in it" in said.out + said.err
    (checkpoints / "checkpoint-4" / "rng_state.pth").write_bytes(whole)
    assert job("finetune", file) == 0
    assert same(adapter(load_config(file).run_dir), adapter(selecting.run_dir))


def test_training_stops_where_nothing_gets_better(tiny_base_folder: Path, tmp_path: Path) -> None:
    """A learning rate that spoils the model: patience 2 ends it two evaluations after the best one."""
    file = sentiment_config(
        tmp_path, tiny_base_folder, optimizer=SELECTING | {"learning_rate": 3.0, "steps": 200, "patience": 2}
    )
    assert job("finetune", file) == 0
    selected = read(load_config(file).run_dir / "selected.json")
    assert selected["trained_steps"] == selected["step"] + 2 * 4 < 200


# Batches.


def finetuned(folder: Path, base: Path, **optimizer: Any) -> dict[str, torch.Tensor]:
    """Fine-tune without dropout in a folder of its own and return the adapter."""
    folder.mkdir()
    file = sentiment_config(folder, base, optimizer=SHORT | optimizer)
    assert job("finetune", file) == 0
    return adapter(load_config(file).run_dir)


def test_batches_of_a_step_and_activations_that_are_computed_again_train_the_same(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an epoch has four rows, three and one. To 1e-3: float32 sums in another order."""
    calls, forward = [0], LlamaMLP.forward

    def counted(self: LlamaMLP, *arguments: Any) -> Any:
        calls[0] += self.training
        return forward(self, *arguments)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    plain = finetuned(tmp_path / "plain", tiny_base_folder)
    once, calls[0] = calls[0], 0
    again = finetuned(tmp_path / "again", tiny_base_folder, gradient_checkpointing=True)
    assert calls[0] == 2 * once > 0
    halves = finetuned(tmp_path / "halves", tiny_base_folder, batch_size=3, gradient_accumulation=2)
    for name, tensor in plain.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(halves[name], tensor, rtol=1e-3, atol=1e-4)


def test_loraplus_takes_a_larger_step_in_every_lora_b(tiny_base_folder: Path, tmp_path: Path) -> None:
    """AdamW's first step is the learning rate for each number that has a gradient, and B begins at zero."""
    plain = finetuned(tmp_path / "plain", tiny_base_folder, steps=1)
    plus = finetuned(tmp_path / "plus", tiny_base_folder, steps=1, loraplus_lr_ratio=4)
    for name, tensor in plain.items():
        torch.testing.assert_close(plus[name], (4 if ".lora_B." in name else 1) * tensor, rtol=1e-3, atol=1e-6)
    assert any(bool(t.any()) for name, t in plain.items() if ".lora_B." in name)


def test_rows_of_like_length_come_together_in_another_order_each_epoch() -> None:
    lengths = torch.randint(5, 100, (601,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthGrouped(lengths, 6, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(601))
    assert orders[0] == orders[2] != orders[1]

    def padding(order: list[int]) -> int:
        parts = [[lengths[i] for i in order[k : k + 6]] for k in range(0, 601, 6)]
        return sum(len(part) * max(part) - sum(part) for part in parts)

    assert all(padding(order) < 0.5 * padding(list(range(601))) for order in orders)


def test_the_artifact_says_which_step_was_kept_and_how_prompts_were_cut(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its posterior is of the rows that were trained on, and every fold keeps a step of its own.

    Heads are weighed on all labelled rows.
    """
    file = sentiment_config(
        tmp_path,
        tiny_base_folder,
        max_tokens=20,
        cut={"field": "text", "side": "right"},
        optimizer=SELECTING | {"steps": 8},
        calibration={"rows": "cross_fit", "folds": 2},
        experts={"encoder": None},
        predictives={},
    )
    assert job("run", file) == 0
    shown, config = capsys.readouterr().out, load_config(file)
    manifest, gained = read(config.artifact_dir / "manifest.json"), read_fit(config.run_dir / "laplace").fine_tuning
    assert gained is not None
    assert manifest["data"]["fine_tuning"] == str(gained)
    assert (gained.rows, manifest["calibration"]["rows"]) == (54, 54)
    assert shown.count("labelled rows: 72/72") == 1, "for the frozen fit and beside the adapter"
    assert shown.count(str(gained)) == 3, "of the fit, of the evaluation and at the end"
    assert set(manifest["pool"]) <= {"adapter", "frozen"}
    assert manifest["data"]["selected"] == read(config.run_dir / "selected.json")
    assert manifest["data"]["rows"] == {"train": 54, "calibration": 0, "test": 24, "selection": 18}
    assert read(config.run_dir / "laplace/fit.json")["train_rows"] == 54
    assert all(read(config.run_dir / f"folds/{number}/selected.json")["step"] > 0 for number in (0, 1))
    run, predictor = open_run(config), Predictor.load(config.artifact_dir, device="cpu")
    rows = run.encode(run.splits.test)
    assert sum(row.truncated for row in rows) > 0
    encoded = [predictor.encode(e.fields, truncate=True) for e in run.splits.test]
    assert [(row.token_ids, row.truncated) for row in encoded] == [(row.token_ids, row.truncated) for row in rows]
    ends = {run.tokenizer.decode(row.token_ids[-5:]) for row in rows}
    assert ends == {" or negative? Answer:"}
    assert job("finetune", file, "cut.field=title") == 1
