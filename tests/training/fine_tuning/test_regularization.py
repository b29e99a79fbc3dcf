"""Training that is held to where it began: the gradient, both limits, resuming, read-outs, and what a run records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_posterior import exact_variances
from safetensors.torch import load_file
from tiny_runs import FinishedRun, choices_config, finish, interrupted_at, job, sentiment_config, write_rows

from laplora.artifact.folder import read_artifact
from laplora.errors import ConfigError
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks
from laplora.linearised import class_probs, expected_log_likelihood, log_likelihood
from laplora.models.adapters import attach_adapter
from laplora.posterior.file import read_posterior
from training.config import RunConfig, load_config
from training.config.student import DistilRequest
from training.distil import student_config
from training.fine_tuning.regularization import Regularization, trained_weights, with_base_answers
from training.workspace.folds import fold_runs
from training.workspace.results import load_trained
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.targets import training_targets

pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")

SHORT = {"learning_rate": 1e-2, "steps": 24, "batch_size": 6, "checkpoint_every": 8}
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.1}
SEQUENCES = {
    "readout": "label_sequences",
    "adapter": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
}


def finetuned(folder: Path, base: Path, **optimizer: Any) -> RunConfig:
    """Fine-tune in a folder of its own and return the configuration."""
    folder.mkdir()
    file = sentiment_config(folder, base, optimizer=SHORT | optimizer)
    assert job("finetune", file) == 0
    return load_config(file)


def weights_of(config: RunConfig, name: str) -> dict[str, torch.Tensor]:
    return load_file(config.run_dir / name / "adapter_model.safetensors")


def moved(config: RunConfig) -> float:
    """Return the squared distance of the trained weights from the initial ones."""
    start, end = weights_of(config, "initial_adapter"), weights_of(config, "adapter")
    return sum(float((end[name].double() - start[name].double()).square().sum()) for name in end)


def answers(run: Run, model: Any) -> torch.Tensor:
    """Return the probabilities of the training rows in one batch."""
    batch = run.collate(run.encode(run.splits.train))
    with torch.no_grad():
        return class_probs(run.readout.scores(model, batch).logits, batch.class_mask)


def divergence(config: RunConfig) -> float:
    """Return the mean ``KL(p_base || p)`` of the training rows, the base loaded without an adapter."""
    run = open_run(config)
    base = answers(run, run.load_base())
    adapted = answers(run, attach_adapter(run.load_base(), run.folder / "adapter"))
    return float((base * (base.log() - adapted.log())).sum(1).mean())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> RunConfig:
    """A fine-tune that is held to nothing."""
    return finetuned(tmp_path_factory.mktemp("plain") / "run", tiny_base_folder)


# The loss.


@pytest.mark.parametrize("kind", ["label_tokens", "label_sequences", "choices"])
def test_the_gradient_is_that_of_the_formula(tiny_base_folder: Path, tmp_path: Path, kind: str) -> None:
    """The base's answers from a base without an adapter. ``choices`` is NF4, with rows of two and of three classes."""
    if kind == "choices":
        file = choices_config(tmp_path, tiny_base_folder)
    else:
        file = sentiment_config(tmp_path, tiny_base_folder, **(SEQUENCES if kind == "label_sequences" else {}))
    assert job("finetune", file, "optimizer.steps=4") == 0
    run = open_run(load_config(file, ["optimizer.steps=4"]))
    model = attach_adapter(run.load_base(), run.folder / "adapter")
    targets = training_targets(run)
    pulled = with_base_answers(run, model, targets)
    of_base = torch.stack([probs for _, _, probs in pulled])
    tolerance = 3e-2 if kind == "choices" else 1e-5  # bfloat16, in batches of other sizes
    torch.testing.assert_close(of_base.double(), answers(run, run.load_base()), rtol=tolerance, atol=tolerance)
    assert (of_base.sum(1) - 1).abs().max() < 1e-6
    model.requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
    weights = trained_weights(model)
    start = [weight.detach() + 0.01 * (i + 1) for i, weight in enumerate(weights)]
    batch = run.collate(run.encode(run.splits.train[:6]))
    logits = run.readout.scores(model, batch).logits
    found = Regularization(0.7, 0.3, tuple(start)).loss(model, logits, batch.class_mask, of_base[:6])
    gradients = torch.autograd.grad(found, weights, retain_graph=True)
    terms = []
    for i, possible in enumerate(batch.class_mask):
        log_probs = logits[i][possible].double().log_softmax(0)
        share = of_base[i][possible].double()
        terms.append((share * (share.log() - log_probs)).sum())
    expected = 0.7 * torch.stack(terms).mean()
    of_kl = torch.autograd.grad(expected, weights)
    distance = sum(float((w.detach() - s).double().square().sum()) for w, s in zip(weights, start, strict=True))
    assert float(found.detach()) == pytest.approx(float(expected.detach()) + 0.15 * distance, rel=1e-4)
    for weight, origin, gradient, kl in zip(weights, start, gradients, of_kl, strict=True):
        torch.testing.assert_close(gradient, kl + 0.3 * (weight.detach() - origin), rtol=1e-4, atol=1e-6)


# Limits.


def test_strong_terms_keep_the_bases_answers_and_the_initial_weights(
    plain: RunConfig, tiny_base_folder: Path, tmp_path: Path
) -> None:
    """Hardly anything is left to the labels; weights stay near where they began and not near zero, as by decay."""
    pulled = finetuned(tmp_path / "pulled", tiny_base_folder, kl_to_base=1000.0)
    held = finetuned(tmp_path / "held", tiny_base_folder, l2_to_initial=1e4)
    assert divergence(pulled) < 0.02 * divergence(plain)
    assert moved(held) < 0.02 * moved(plain)
    start = weights_of(held, "initial_adapter")
    assert moved(held) < 0.01 * sum(float(weight.double().square().sum()) for weight in start.values())


# Runs.


def test_an_interrupted_one_ends_at_the_same_weights(tiny_base_folder: Path, tmp_path: Path) -> None:
    """Bit for bit, dropout included: the initial weights and the base's answers are those of the first start."""
    held = SHORT | {"kl_to_base": 0.5, "l2_to_initial": 0.05}
    ends = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        file = sentiment_config(folder, tiny_base_folder, optimizer=held, adapter=DROPOUT)
        if name == "stopped":
            interrupted_at(19, file)
            assert (load_config(file).run_dir / "checkpoints" / "checkpoint-16").is_dir()
        assert job("finetune", file) == 0
        ends.append(weights_of(load_config(file), "adapter"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.fixture(scope="module")
def held_run(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> FinishedRun:
    """A finished run that is held to both, and answers under the prior of its loss."""
    file = sentiment_config(
        tmp_path_factory.mktemp("held"),
        tiny_base_folder,
        optimizer=SHORT | {"steps": 12, "kl_to_base": 0.75, "l2_to_initial": 0.25},
        laplace={"rank": 100, "joint_rank": 100, "batch_size": 8, "prior": "l2"},
        predictives={"serve": "laplace"},
    )
    return finish(file, tiny_base_folder)


def test_the_artifact_says_so(held_run: FinishedRun) -> None:
    manifest = json.loads((held_run.artifact / "manifest.json").read_text())
    optimizer = manifest["config"]["optimizer"]
    assert (optimizer["kl_to_base"], optimizer["l2_to_initial"]) == (0.75, 0.25)
    assert manifest["prior"]["method"] == "l2"
    assert manifest["prior"]["precision"] == {"all": pytest.approx(0.25 * 40)}
    assert manifest["prior"]["centre"] == "initial_adapter"


def test_a_student_is_held_to_its_teacher_alone(held_run: FinishedRun, tmp_path: Path) -> None:
    """Whose answers both terms have shaped; and the student's loss states no prior."""
    request = DistilRequest(
        artifact=held_run.artifact, inputs=write_rows(tmp_path / "inputs.jsonl", [{"text": "A film."}])
    )
    request = replace(request, overrides=(f"data.path={held_run.config.data.path}",))
    config = student_config(request, read_artifact(held_run.artifact))
    assert (config.optimizer.kl_to_base, config.optimizer.l2_to_initial) == (0, 0)
    assert config.laplace.prior == "validation"
    with pytest.raises(ConfigError, match="which its teacher's own regularisation has shaped"):
        student_config(
            replace(request, overrides=(*request.overrides, "optimizer.kl_to_base=0.1")),
            read_artifact(held_run.artifact),
        )


def test_the_posterior_is_that_of_the_loss(held_run: FinishedRun) -> None:
    """Variances of the file's posterior against a dense inverse of 1.75 times the labels' curvature, to float32."""
    run = open_run(held_run.config)
    model = load_trained(run)
    blocks = covered_blocks(model, run.readout)
    batch = run.collate(run.encode(run.splits.train))
    found = contrast_jacobians(model, batch, run.readout, blocks)
    probs = found.logits.double().softmax(1)
    hessian = 2 * 1.75 * probs.prod(1)  # the one contrast is (f_0 - f_1) / sqrt 2
    dense = exact_variances(found, hessian, 10.0)
    posterior = read_posterior(run.folder / "laplace" / "posterior.safetensors", blocks)
    covariance = posterior.covariance_of(found, torch.full((len(blocks),), 10.0, dtype=torch.float64))
    torch.testing.assert_close(covariance[:, 0, 0].double(), dense, rtol=1e-3, atol=1e-8)
    recorded = json.loads((run.folder / "laplace" / "fit.json").read_text())["log_likelihood"]
    labels = torch.tensor([example.label for example in run.splits.train])
    plain = log_likelihood("categorical", found.logits, labels, batch.class_mask).sum()
    of_base = expected_log_likelihood(answers(run, run.load_base()), found.logits, batch.class_mask).sum()
    assert recorded == pytest.approx(float(plain + 0.75 * of_base), rel=1e-4)


@pytest.mark.exhaustive
def test_every_fold_has_the_answers_to_its_own_rows(tiny_base_folder: Path, tmp_path: Path) -> None:
    """And its posterior is of its loss: the run goes to its end."""
    file = sentiment_config(
        tmp_path,
        tiny_base_folder,
        optimizer=SHORT | {"steps": 6, "kl_to_base": 0.5, "l2_to_initial": 0.1},
        calibration={"rows": "cross_fit", "folds": 2},
    )
    run = open_run(finish(file, tiny_base_folder).config)
    for one in (run, *fold_runs(run)):
        kept = load_file(one.folder / "base" / "answers.safetensors")["probs"]
        torch.testing.assert_close(kept.double(), answers(one, run.load_base()), rtol=1e-5, atol=1e-6)
    assert len({len(one.splits.train) for one in (run, *fold_runs(run))}) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.kl_to_base=-0.1", "optimizer.kl_to_base: Input should be greater than or equal to 0"),
        ("optimizer.l2_to_initial=-1", "optimizer.l2_to_initial: Input should be greater than or equal to 0"),
        ("optimizer.kl_to_base=.nan", "optimizer.kl_to_base: Input should be"),
        ("optimizer.l2_to_initial=.inf", "optimizer.l2_to_initial: Input should be a finite number"),
        ("laplace.prior=l2", "set it above 0"),
    ],
)
def test_weights_that_are_none_are_refused(tiny_base_folder: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(sentiment_config(tmp_path, tiny_base_folder), [override])


def test_the_fit_is_told(tiny_base_folder: Path, tmp_path: Path) -> None:
    file = sentiment_config(tmp_path, tiny_base_folder, optimizer=SHORT | {"kl_to_base": 0.5, "l2_to_initial": 0.1})
    settings = load_config(file).fit
    assert (settings.kl_to_base, settings.l2_to_initial) == (0.5, 0.1)
