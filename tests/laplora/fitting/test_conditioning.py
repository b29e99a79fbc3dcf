"""The predictive that the calibration rows' labels move: what it is, and that no row answers by its own label."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_path import Rows
from joint_problem import fit_joint

import laplora
from laplora.errors import ArtifactCorruptError, ConfigError, LaploraWarning, NonFiniteError
from laplora.experts.base import Outputs
from laplora.files import write_tensors
from laplora.fitting import priors
from laplora.fitting.adapted_experts import MOST, possible_conditioning
from laplora.fitting.calibrate import calibrate, out_of_fold, predictive_of, prior_without
from laplora.fitting.conditioning import Conditioning, shifts_of, with_held_out
from laplora.fitting.outputs import Fitted, SplitOutputs
from laplora.fitting.projected import ProjectedSplit
from laplora.fitting.served_rows import taken
from laplora.fitting.settings import FitSettings
from laplora.head import newton
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.jacobians.contrasts import contrast_jacobians
from laplora.linearised import class_log_probs, class_probs, contrast_logits, contrast_mean
from laplora.metrics.scores import row_nll
from laplora.posterior.base import Posterior, block_precisions
from laplora.predictive.cross_fitting import FOLDS, fold_rows
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.kinds import CONDITIONED, Corrected, PredictiveName
from laplora.predictive.shift import tempering
from laplora.predictive.shift_file import read_shifts, shift_tensors
from laplora.prior.validation import choose_by_validation

CLASSES, WIDTH = 3, 12
SETTINGS = laplora.FitSettings()
KINDS = pytest.mark.parametrize("kind", CONDITIONED)


def linear_rows(count: int, seed: int, moved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits of a linear model, the states it reads, and labels drawn from the model with moved weights."""
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(count, WIDTH, generator=draw, dtype=torch.float64)
    weights = torch.randn(WIDTH, CLASSES - 1, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / 3
    true = contrast_logits(states @ (weights + moved))
    return contrast_logits(states @ weights), states, torch.multinomial(true.softmax(1), 1, generator=draw)[:, 0]


def jacobians_of(logits: torch.Tensor, states: torch.Tensor) -> ContrastJacobians:
    """Return the Jacobians of the contrasts by the weights, which are one block."""
    jacobian = torch.einsum("nw,cd->ncwd", states, torch.eye(CLASSES - 1, dtype=torch.float64))
    return ContrastJacobians(logits, states, (BlockJacobian(jacobian),))


def split_of(posterior: Posterior, logits: torch.Tensor, states: torch.Tensor, labels: torch.Tensor) -> ProjectedSplit:
    """Return rows as a posterior projects them."""
    projected = posterior.project(jacobians_of(logits, states))
    mask = torch.ones(logits.shape, dtype=torch.bool)
    return ProjectedSplit(projected, logits, mask, labels, torch.ones(len(mask)), last=states)


@cache
def problem(moved_by: float) -> tuple[Conditioning, SplitOutputs, ProjectedSplit]:
    """Return the calibration rows of a linear model whose true weights are elsewhere, and test rows."""
    draw = torch.Generator().manual_seed(5)
    moved = moved_by * torch.randn(WIDTH, CLASSES - 1, generator=draw, dtype=torch.float64)
    logits, states, _ = linear_rows(40, 1, moved)
    blocks = (Block("w.lora_A", "lora_A", WIDTH, CLASSES - 1),)
    batch = Rows(jacobians_of(logits, states), torch.ones(len(logits), CLASSES, dtype=torch.bool))
    posterior = fit_joint(blocks, [batch])
    split = split_of(posterior, *linear_rows(80, 2, moved))
    prior = choose_by_validation(posterior, split.projected, split.labels, split.class_mask).prior
    fitted = Fitted(posterior, prior, split.projected)
    conditioning = Conditioning(fitted, split)
    outputs = SplitOutputs(split, fitted, {kind: conditioning.served(kind).shift for kind in CONDITIONED})
    return conditioning, outputs, split_of(posterior, *linear_rows(2000, 3, moved))


def nll_of(conditioning: Conditioning, test: ProjectedSplit, name: PredictiveName) -> float:
    """Return the mean NLL of test rows, nats, as a run measures it."""
    served = {kind: conditioning.served(kind) for kind in CONDITIONED}
    fitted = replace(conditioning.trained, projected=test.projected)
    outputs = SplitOutputs(test, fitted, shifts_of(served))
    temperature = served["conditioned"].shift.temperature if name in ("conditioned", "temperature") else 1.0
    return float(row_nll(predictive_of(outputs, name, temperature).probs, test.labels).mean())


@KINDS
def test_labels_teach_where_the_weights_are_elsewhere_and_else_next_to_nothing(kind: Corrected) -> None:
    """On new rows the corrected predictive is better than what it corrects, by more than a tenth of a nat."""
    before: PredictiveName = "temperature" if kind == "conditioned" else "laplace"
    conditioning, _, test = problem(0.5)
    assert nll_of(conditioning, test, kind) < nll_of(conditioning, test, before) - 0.1
    conditioning, _, test = problem(0.0)
    assert nll_of(conditioning, test, kind) == pytest.approx(nll_of(conditioning, test, before), abs=0.02)


def test_no_row_is_answered_by_its_own_label() -> None:
    """The label of one row is turned: its fold's answers stay, every other fold's change."""
    conditioning, outputs, _ = problem(0.5)
    rows = len(conditioning.split)
    fold = next(answered for _, answered in fold_rows(rows, FOLDS, SETTINGS.seed) if 7 in answered)
    labels = outputs.split.labels.clone()
    labels[7] = (labels[7] + 1) % CLASSES
    split = replace(conditioning.split, labels=labels)
    pairs = ((outputs, conditioning), (replace(outputs, split=split), replace(conditioning, split=split)))
    found = [out_of_fold(SETTINGS, one, prior_without(SETTINGS, one), how) for one, how in pairs]
    others = torch.ones(rows, dtype=torch.bool)
    others[fold] = False
    for kind in CONDITIONED:
        before, after = (answers[kind].probs for answers in found)
        assert torch.equal(before[fold], after[fold]), kind
        assert bool((before != after).any(1)[others].all()), kind
        served = with_held_out({kind: conditioning.served(kind)}, found[0], split)[kind]
        torch.testing.assert_close(served.held_out.exp(), before)


@KINDS
def test_a_fold_is_answered_as_new_rows_are(kind: Corrected) -> None:
    """As by what is served of the other folds alone: the held-out rows' states are in no mean and no scale."""
    conditioning = problem(0.5)[0]
    trained, split = conditioning.trained, conditioning.split
    fit, answered = fold_rows(len(split), FOLDS, SETTINGS.seed)[0]
    alone = replace(trained, projected=trained.projected.take(fit))
    served = Conditioning(alone, taken(split, fit)).served(kind)
    held_out = taken(split, answered)
    new = SplitOutputs(held_out, replace(trained, projected=held_out.projected), {kind: served.shift})
    expected = predictive_of(new, kind, served.shift.temperature)
    alike = conditioning.predictive(kind, fit, answered, lambda: trained.prior)
    torch.testing.assert_close(alike.probs, expected.probs, rtol=0, atol=1e-8)


def test_thresholds_and_recommendation_come_from_the_folds() -> None:
    """What is recorded of the predictives is measured on answers without the row, and they win where they should."""
    conditioning, outputs, _ = problem(0.5)
    found, scores = calibrate(SETTINGS, outputs, conditioning)
    held_out = out_of_fold(SETTINGS, outputs, prior_without(SETTINGS, outputs), conditioning)
    for kind in CONDITIONED:
        record, probs = found.predictives[kind], held_out[kind].probs
        assert record.nll == pytest.approx(float(row_nll(probs, outputs.split.labels).mean()))
        assert record.nll < found.predictives["laplace"].nll
        assert record.temperature == (outputs.shifts[kind].temperature if kind == "conditioned" else 1.0)
        assert torch.equal(scores[kind].error, probs.argmax(1) != outputs.split.labels)
    assert found.recommended.predictive in CONDITIONED


def test_an_answer_adds_what_its_last_state_gives(conditioned: laplora.CalibratedPosterior) -> None:
    """Of a real model: the served probabilities are those of the moved mean, with and without the covariance."""
    classifier, fit = conditioned.classifier, conditioned.fit
    inputs = [{"text": "a gripping film ."}, {"text": "dull , and far too long for its one idea ."}]
    for given in inputs:
        batch = classifier.collate([classifier.encode(given)])
        blocks = fit.posterior.blocks
        jacobians = contrast_jacobians(classifier.model, batch, classifier.readout, blocks, sums=False)
        mean = contrast_mean(jacobians.logits.double())
        for kind, one in fit.conditioned.items():
            moved, covariance = jacobians.hidden.double() @ one.shift.weights + one.shift.constant, None
            if kind == "conditioned":
                expected = class_probs(contrast_logits(mean / one.shift.temperature + moved), batch.class_mask)[0]
            else:
                precisions = block_precisions(fit.served.prior, blocks)
                covariance = fit.posterior.covariance_of(jacobians, precisions)
                mean = mean + tempering(covariance, batch.class_mask) * moved
                expected = posterior_predictive(mean, covariance, batch.class_mask).probs[0]
            (answer,) = conditioned.predict([given], kind)
            torch.testing.assert_close(torch.tensor(answer.arrays.probs).double(), expected, rtol=0, atol=1e-4)
            assert (answer.logit_variance is None) == (kind == "conditioned")
            log_probs = {"adapter": class_log_probs(jacobians.logits, batch.class_mask)}
            states = {"last_state": {"last": jacobians.hidden}}
            of_pass = Outputs(batch.class_mask, log_probs, states, covariance)
            torch.testing.assert_close(one.log_probs(of_pass)[0].exp(), expected, rtol=0, atol=1e-6)
            nll = -one.held_out.gather(1, fit.calibration.labels[:, None]).mean()
            assert float(nll) == pytest.approx(fit.calibrated.predictives[kind].nll)
            # Labels correct the answer, and not what the trained weights say.
            at_map = class_probs(jacobians.logits, batch.class_mask)[0]
            torch.testing.assert_close(torch.tensor(answer.arrays.map_probs).double(), at_map, rtol=0, atol=1e-4)


def test_equal_prompts_are_one_group(classifier: laplora.Classifier, rows: dict[str, list[dict[str, Any]]]) -> None:
    """A question that comes again, in another case or with another label, is in one fold with its twin."""
    given = rows["calibration"]
    again = [{**given[0], "id": "case", "text": f" {given[0]['text'].upper()}"}, {**given[1], "id": "label"}]
    again[1]["label"] = next(label for label in classifier.labels if label != given[1]["label"])
    with pytest.warns(LaploraWarning, match="1 rows repeat another row's prompt with another label"):
        fit = laplora.fit(classifier, rows["train"], given + again, progress=False).fit
    split = fit.calibration
    assert split.groups is not None
    assert split.groups.tolist() == [*range(len(given)), 0, 1]
    assert fit.calibrated.calibration.rows == len(given) + 2


@KINDS
@pytest.mark.parametrize("always", [0, 30])
def test_a_twins_label_answers_nobody(kind: Corrected, always: int) -> None:
    """The label of a row is turned: its group's answers stay, also where the row conditions every fold."""
    conditioning = problem(0.5)[0]
    groups = torch.arange(len(conditioning.split))
    groups[[40, 61]] = 3
    labels = conditioning.split.labels.clone()
    labels[3] = (labels[3] + 1) % CLASSES
    fit, answered = next(
        (fit, answered)
        for fit, answered in fold_rows(len(groups) - always, groups=groups[always:])
        if 40 - always in answered
    )
    assert 61 - always in answered
    if always:  # row 3 joins rows that the folds of the new ones part
        joined = int(fit[0]) + always
        groups[joined], labels[joined] = 3, (labels[joined] + 1) % CLASSES
    first = replace(conditioning.split, groups=groups)
    before, after = (
        replace(conditioning, split=split, always=always).predictive(
            kind, fit, answered, lambda: conditioning.trained.prior
        )
        for split in (first, replace(first, labels=labels))
    )
    assert torch.equal(before.probs, after.probs)


def test_a_damaged_shift_is_refused(tmp_path: Path) -> None:
    """Another shape, NaN, or other predictives than the manifest has."""
    conditioning, _, _ = problem(0.5)
    shifts, path = {"conditioned": conditioning.served("conditioned").shift}, tmp_path / "shift.safetensors"
    tensors, _ = shift_tensors(shifts)  # type: ignore[arg-type]
    write_tensors(path, tensors)
    read = read_shifts(path, {"conditioned": 1.5}, WIDTH, CLASSES - 1)["conditioned"]
    torch.testing.assert_close(read.weights, shifts["conditioned"].weights, rtol=1e-6, atol=1e-6)
    assert read.temperature == 1.5
    for name, bad in (
        ("conditioned.weights", tensors["conditioned.weights"][:3].contiguous()),
        ("conditioned.weights", tensors["conditioned.weights"] * torch.nan),
        ("conditioned.constant", tensors["conditioned.constant"][:1].contiguous()),
    ):
        write_tensors(path, tensors | {name: bad})
        with pytest.raises(ArtifactCorruptError, match=name):
            read_shifts(path, {"conditioned": 1.5}, WIDTH, CLASSES - 1)
    write_tensors(path, tensors)
    with pytest.raises(ArtifactCorruptError, match="laplace_conditioned"):
        read_shifts(path, dict.fromkeys((*CONDITIONED, "laplace_conditioned"), 1.5), WIDTH, CLASSES - 1)


def test_where_it_cannot_be_it_is_off_and_says_why(classifier: laplora.Classifier) -> None:
    """A fit goes on without it; asked to serve it, it refuses."""
    with pytest.warns(LaploraWarning, match="conditioned is off: .*more than"):
        found = possible_conditioning(classifier, FitSettings(), MOST + 1)
    assert not set(found.predictives.names) & set(CONDITIONED)
    for kind in CONDITIONED:
        wanted = FitSettings.model_validate({"predictives": {"serve": kind}})
        with pytest.raises(ConfigError, match="more than"):
            possible_conditioning(classifier, wanted, MOST + 1)
    assert possible_conditioning(classifier, FitSettings(), 20) == FitSettings()


def test_what_cannot_be_computed_is_off_and_the_fit_goes_on(
    classifier: laplora.Classifier, rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that no head fits, and a prior that is only reported; where they are to be served it is an error."""
    monkeypatch.setattr(newton, "_STEPS", 0)
    off = {"conditioned": False}

    def of_settings(**settings: Any) -> laplora.CalibratedPosterior:
        chosen = FitSettings.model_validate(settings)
        return laplora.fit(classifier, rows["train"], rows["calibration"], settings=chosen, progress=False)

    with pytest.warns(LaploraWarning, match="conditioned is off: no head fits the labels"):
        found = of_settings()
    assert set(found.predictives) == {"map", "temperature", "laplace"}
    assert not found.fit.conditioned
    assert not found.fit.settings.predictives.conditioned
    with pytest.raises(ConfigError, match="serve: conditioned cannot be: no head fits the labels"):
        of_settings(predictives={"serve": "conditioned"})

    def no_evidence(*_: Any) -> Any:
        raise NonFiniteError("too large")

    monkeypatch.setattr(priors, "choose_by_evidence", no_evidence)
    with pytest.warns(LaploraWarning, match=r"no prior by evidence \(group\) is reported: too large"):
        assert {one.method for one in of_settings(predictives=off).fit.choices} == {"validation"}
    with pytest.raises(NonFiniteError, match="too large"):
        of_settings(laplace={"prior": "evidence"}, predictives=off)
