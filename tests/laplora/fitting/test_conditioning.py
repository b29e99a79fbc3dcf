"""The predictive that the calibration rows' labels move: what it is, and that no row answers by its own label."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from test_entry import Noted, load, rows_of
from tiny_runs import FinishedRun

import laplora
from laplora.artifact.folder import read_artifact
from laplora.conditioning.choice import choose_kernel
from laplora.errors import ArtifactCorruptError, ConfigError
from laplora.files import write_tensors
from laplora.fitting.calibrate import calibrate, out_of_fold, priors_without
from laplora.fitting.conditioning import MOST, Conditioning, conditioned_blocks
from laplora.fitting.outputs import Fitted, SplitOutputs
from laplora.fitting.projected import ProjectedSplit
from laplora.fitting.settings import FitSettings
from laplora.jacobians.contrasts import contrast_jacobians
from laplora.linearised import class_probs, contrast_logits, contrast_mean
from laplora.metrics.scores import row_nll
from laplora.posterior.base import block_precisions
from laplora.posterior.joint_solve import joint_of
from laplora.posterior.passes import StructureSettings
from laplora.posterior.tensors import fit_jacobians, project_jacobians
from laplora.predictive.cross_fitting import FOLDS, fold_rows
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.shift import Shift, tempering
from laplora.predictive.shift_file import read_shift, shift_tensors
from laplora.prior.validation import choose_by_validation
from laplora.prompts.templates import TEMPLATES

CLASSES, SHAPE = 3, (10, 4)
SETTINGS = FitSettings.model_validate({"predictives": {"laplace_temperature": False, "fast": 0}})


def linear_rows(count: int, seed: int, moved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits of a linear model, its Jacobians, and labels drawn from the model with moved weights."""
    draw = torch.Generator().manual_seed(seed)
    jacobians = torch.randn(count, CLASSES - 1, *SHAPE, generator=draw, dtype=torch.float64)
    weights = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / 4
    mean = (jacobians * weights).flatten(2).sum(2)
    true = contrast_logits(mean + (jacobians * moved).flatten(2).sum(2))
    return contrast_logits(mean), jacobians, torch.multinomial(true.softmax(1), 1, generator=draw)[:, 0]


@cache
def problem(moved_by: float, rows: int = 60) -> tuple[Conditioning, SplitOutputs, dict[str, torch.Tensor]]:
    """Return the calibration rows of a linear model whose true weights are elsewhere, and test rows."""
    moved = moved_by * torch.randn(*SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    logits, jacobians, _ = linear_rows(40, 1, moved)
    settings = StructureSettings(structure="exact", basis_dtype=torch.float64)
    posterior = joint_of(fit_jacobians([(logits, {"w.lora_B": jacobians})], settings))
    logits, jacobians, labels = linear_rows(rows, 2, moved)
    projected, mask = project_jacobians(posterior, [(logits, {"w.lora_B": jacobians})])
    split = ProjectedSplit(projected, logits, mask, labels, torch.ones(rows), jacobians=(jacobians,))
    prior = choose_by_validation(posterior, projected, labels, mask).prior
    fitted = Fitted(posterior, prior, projected)
    conditioning = Conditioning.of(fitted, split, posterior.blocks)
    served = conditioning.served()
    outputs = SplitOutputs(replace(split, shift=served.left_out, jacobians=None), (fitted,), {})
    test_logits, test_jacobians, test_labels = linear_rows(2000, 3, moved)
    return conditioning, outputs, {"logits": test_logits, "jacobians": test_jacobians, "labels": test_labels}


def nll_of(conditioning: Conditioning, test: dict[str, torch.Tensor], shift: Shift | None) -> float:
    """Return the mean NLL of test rows, nats."""
    trained = conditioning.trained
    posterior = joint_of(trained.posterior)
    projected, mask = project_jacobians(posterior, [(test["logits"], {"w.lora_B": test["jacobians"]})])
    mean = contrast_mean(test["logits"])
    covariance = posterior.covariance(projected, block_precisions(trained.prior, posterior.blocks))
    if shift is not None:
        moved = (test["jacobians"] * shift.weights[0]).flatten(2).sum(2) + shift.constant
        mean = mean + tempering(covariance, mask) * moved
    return float(row_nll(posterior_predictive(mean, covariance, mask).probs, test["labels"]).mean())


def test_labels_teach_where_the_weights_are_elsewhere() -> None:
    """On new rows the moved mean is better, by more than the tenth of a nat."""
    conditioning, _, test = problem(0.5)
    assert nll_of(conditioning, test, conditioning.served().shift) < nll_of(conditioning, test, None) - 0.1


def test_labels_that_say_nothing_new_move_nothing_much() -> None:
    """Where the weights are right already, the chosen kernel leaves the answers as they are."""
    conditioning, _, test = problem(0.0)
    before, after = nll_of(conditioning, test, None), nll_of(conditioning, test, conditioning.served().shift)
    assert after == pytest.approx(before, abs=0.01)


def test_a_shift_is_the_kernel_times_alpha() -> None:
    """What the weights' move adds to a row is what the kernel between it and the labelled rows says."""
    conditioning, _, _ = problem(0.5)
    everything = torch.arange(len(conditioning.split))
    shift = conditioning.served().shift
    assert conditioning.split.jacobians is not None
    added = (conditioning.split.jacobians[0] * shift.weights[0]).flatten(2).sum(2) + shift.constant
    rows = conditioning._labelled(conditioning.trained.covariance(), everything)
    choice = choose_kernel(conditioning.tried, rows)
    torch.testing.assert_close(added, choice.mode.contrasts - rows.mean, rtol=1e-4, atol=1e-5)


def test_no_row_is_answered_by_its_own_label() -> None:
    """The label of one row is turned: its fold's answers stay, every other fold's change."""
    conditioning, outputs, _ = problem(0.5)
    rows = len(conditioning.split)
    fold = next(answered for _, answered in fold_rows(rows, FOLDS, SETTINGS.seed) if 7 in answered)
    labels = outputs.split.labels.clone()
    labels[7] = (labels[7] + 1) % CLASSES
    split = replace(conditioning.split, labels=labels)
    turned = replace(conditioning, split=split)
    found = [
        out_of_fold(SETTINGS, one, priors_without(SETTINGS, one), how)["conditioned"].probs
        for one, how in ((outputs, conditioning), (replace(outputs, split=replace(split, shift=None)), turned))
    ]
    others = torch.ones(rows, dtype=torch.bool)
    others[fold] = False
    assert torch.equal(found[0][fold], found[1][fold])
    assert bool((found[0] != found[1]).any(1)[others].all())


def test_thresholds_and_recommendation_come_from_the_folds() -> None:
    """What is recorded of the predictive is measured on answers without the row, and it wins where it should."""
    conditioning, outputs, _ = problem(0.5)
    found, scores = calibrate(SETTINGS, outputs, conditioning)
    held_out = out_of_fold(SETTINGS, outputs, priors_without(SETTINGS, outputs), conditioning)["conditioned"]
    record = found.predictives["conditioned"]
    assert record.nll == pytest.approx(float(row_nll(held_out.probs, outputs.split.labels).mean()))
    assert record.nll < found.predictives["laplace"].nll
    assert found.recommended.predictive == "conditioned"
    assert torch.equal(scores["conditioned"].error, held_out.probs.argmax(1) != outputs.split.labels)


@pytest.fixture(scope="module")
def fitted(sentiment_run: FinishedRun) -> Any:
    """Return a posterior of a tiny model as a user fits it."""
    model, tokenizer = load(sentiment_run)
    classifier = laplora.Classifier(
        model, tokenizer, labels=["negative", "positive"], template=TEMPLATES["sentiment"], max_tokens=64
    )
    rows = rows_of(sentiment_run)
    settings = laplora.FitSettings.model_validate({"predictives": {"fast": 0}})
    return laplora.fit(classifier, rows["train"], rows["calibration"], settings=settings, progress=False)


def test_an_answer_adds_the_jacobians_times_the_shift(fitted: Any, sentiment_run: FinishedRun) -> None:
    """Of a real model: the served probabilities are those of the moved mean under the Laplace covariance."""
    classifier, shift = fitted.classifier, fitted.fit.conditioned.shift
    inputs = [{"text": "a gripping film ."}, {"text": "dull , and far too long for its one idea ."}]
    answers = fitted.predict(inputs, "conditioned", batch_size=1)
    blocks = fitted.fit.posterior.blocks
    for given, answer in zip(inputs, answers, strict=True):
        batch = classifier.collate([classifier.encode(given)])
        jacobians = contrast_jacobians(classifier.model, batch, classifier.readout, blocks, sums=False)
        mean = contrast_mean(jacobians.logits.double())
        moved = shift.constant
        for block, weight in zip(shift.blocks, shift.weights, strict=True):
            moved = moved + (jacobians.blocks[blocks.index(block)].jacobian[0].double() * weight).sum((1, 2))
        precisions = block_precisions(fitted.fit.served.prior, blocks)
        covariance = fitted.fit.posterior.covariance_of(jacobians, precisions)
        mean = mean + tempering(covariance, batch.class_mask) * moved
        expected = posterior_predictive(mean, covariance, batch.class_mask).probs[0]
        torch.testing.assert_close(torch.tensor(answer.probs).double(), expected, rtol=0, atol=1e-4)
        assert answer.logit_variance is not None
        assert answer.predictive == "conditioned"
        assert set(answer.calibrated_probs) >= {"laplace", "temperature"}
        # Labels move the answer, and not what the trained weights say.
        at_map = class_probs(jacobians.logits, batch.class_mask)[0]
        torch.testing.assert_close(torch.tensor(answer.map_probs).double(), at_map, rtol=0, atol=1e-4)


def test_it_is_saved_and_served_as_fitted(fitted: Any, tmp_path: Path) -> None:
    """The artifact has the shift, its record, and the answers of the posterior in memory."""
    place = fitted.save(tmp_path / "tiny")
    manifest = read_artifact(place).manifest
    assert manifest.conditioned is not None
    assert manifest.conditioned.rows == fitted.data["rows"]["calibration"]
    served = laplora.Predictor.load(place, device="cpu")
    given = {"text": "a gripping film ."}
    answer = served.predict([served.encode(given, truncate=True)], "conditioned")[0]
    assert answer.probs == pytest.approx(fitted.predict(given, "conditioned")[0].probs, abs=1e-4)


def test_a_damaged_shift_is_refused(tmp_path: Path) -> None:
    """Another shape, NaN, or blocks that the posterior does not cover."""
    conditioning, _, _ = problem(0.5)
    shift, path = conditioning.served().shift, tmp_path / "shift.safetensors"
    write_tensors(path, *shift_tensors(shift))
    assert torch.equal(read_shift(path, shift.blocks, 2).weights[0], shift.weights[0])
    name, constant = shift.blocks[0].name, shift.constant.float()
    for bad in (shift.weights[0][:3].contiguous(), shift.weights[0] * torch.nan):
        write_tensors(path, {name: bad, "constant": constant})
        with pytest.raises(ArtifactCorruptError, match=name):
            read_shift(path, shift.blocks, 2)
    write_tensors(path, {name: shift.weights[0], "constant": constant[:1]})
    with pytest.raises(ArtifactCorruptError, match="constant"):
        read_shift(path, shift.blocks, 2)
    write_tensors(path, {"another.lora_B": shift.weights[0], "constant": constant})
    with pytest.raises(ArtifactCorruptError, match="does not cover"):
        read_shift(path, shift.blocks, 2)


@pytest.mark.parametrize(
    ("changes", "rows", "seen", "reason"),
    [
        ({"laplace": {"structure": "ekfac"}}, 20, False, "ekfac"),
        ({}, MOST + 1, False, "more than"),
        ({}, 20, True, "trained on"),
    ],
)
def test_where_it_cannot_be_it_is_off_and_says_why(
    fitted: Any, changes: dict[str, Any], rows: int, seen: bool, reason: str
) -> None:
    """A fit goes on without it; asked to serve it, it refuses."""
    settings, noted = FitSettings.model_validate(changes), Noted()
    blocks = fitted.fit.posterior.blocks
    assert conditioned_blocks(fitted.classifier, settings, blocks, rows, seen, noted) == ()
    assert reason in noted.lines[0]
    wanted = FitSettings.model_validate(changes | {"predictives": {"serve": "conditioned"}})
    with pytest.raises(ConfigError, match=reason):
        conditioned_blocks(fitted.classifier, wanted, blocks, rows, seen, noted)
