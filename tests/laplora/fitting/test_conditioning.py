"""The predictive that the calibration rows' labels move: what it is, and that no row answers by its own label."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conditioning_rows import dense_left_out
from fast_path import Rows
from joint_problem import fit_joint

import laplora
from laplora.conditioning import choice, mode
from laplora.conditioning.choice import MOST_LEFT_OUT
from laplora.conditioning.kernel import Kernel
from laplora.conditioning.labelled import log_contrasts
from laplora.conditioning.last_layer import LastStates
from laplora.conditioning.mode import posterior_mode
from laplora.errors import ArtifactCorruptError, ConfigError, LaploraWarning, NonFiniteError
from laplora.files import write_tensors
from laplora.fitting import priors
from laplora.fitting.calibrate import calibrate, out_of_fold, predictive_of, prior_without
from laplora.fitting.conditioning import MOST, Conditioning, possible_conditioning, shifts_of
from laplora.fitting.outputs import Fitted, SplitOutputs, corrected
from laplora.fitting.projected import ProjectedSplit
from laplora.fitting.served_rows import taken
from laplora.fitting.settings import FitSettings
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.jacobians.contrasts import contrast_jacobians
from laplora.linearised import class_probs, contrast_logits, contrast_mean
from laplora.metrics.scores import row_nll
from laplora.posterior.base import Posterior, block_precisions
from laplora.predictive.cross_fitting import FOLDS, fold_rows
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.kinds import CONDITIONED, Corrected, PredictiveName
from laplora.predictive.shift import tempering
from laplora.predictive.shift_file import read_shifts, shift_tensors
from laplora.prior.validation import choose_by_validation
from laplora.prompts.examples import Example

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


@pytest.fixture(params=[MOST_LEFT_OUT, 0], ids=["few", "many"])
def most_left_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Have rows left out one by one, as where they are few, or by folds, as where they are many."""
    most: int = request.param
    monkeypatch.setattr(choice, "MOST_LEFT_OUT", most)
    return most


def split_of(posterior: Posterior, logits: torch.Tensor, states: torch.Tensor, labels: torch.Tensor) -> ProjectedSplit:
    """Return rows as a posterior projects them."""
    projected = posterior.project(jacobians_of(logits, states))
    mask = torch.ones(logits.shape, dtype=torch.bool)
    return ProjectedSplit(projected, logits, mask, labels, torch.ones(len(mask)), last=states)


@cache
def problem(moved_by: float, _most_left_out: int = MOST_LEFT_OUT) -> tuple[Conditioning, SplitOutputs, ProjectedSplit]:
    """Return the calibration rows of a linear model whose true weights are elsewhere, and test rows.

    Args:
        _most_left_out: as the fixture says, to tell what was made under it from the rest.
    """
    draw = torch.Generator().manual_seed(5)
    moved = moved_by * torch.randn(WIDTH, CLASSES - 1, generator=draw, dtype=torch.float64)
    logits, states, _ = linear_rows(40, 1, moved)
    blocks = (Block("w.lora_A", "lora_A", WIDTH, CLASSES - 1),)
    batch = Rows(jacobians_of(logits, states), torch.ones(len(logits), CLASSES, dtype=torch.bool))
    posterior = fit_joint(blocks, [batch])
    split = split_of(posterior, *linear_rows(80, 2, moved))
    prior = choose_by_validation(posterior, split.projected, split.labels, split.class_mask).prior
    fitted = Fitted(posterior, prior, split.projected)
    conditioning = Conditioning.of(fitted, split)
    plain, weighted = (Conditioning.of(fitted, split, class_weights=w).states.layer() for w in ((), (3.0, 1.0, 0.5)))
    assert not torch.allclose(plain.curvature, weighted.curvature, rtol=0.1)  # right by tests/laplora/conditioning
    served = {kind: conditioning.served(kind) for kind in CONDITIONED}
    left_out = {kind: one.left_out for kind, one in served.items()}
    outputs = SplitOutputs(split, fitted, moved=left_out, temperature=served["conditioned"].shift.temperature)
    return conditioning, outputs, split_of(posterior, *linear_rows(2000, 3, moved))


def nll_of(conditioning: Conditioning, test: ProjectedSplit, name: PredictiveName) -> float:
    """Return the mean NLL of test rows, nats, as a run measures it."""
    served = {kind: conditioning.served(kind) for kind in CONDITIONED}
    fitted = replace(conditioning.trained, projected=test.projected)
    outputs = corrected(SplitOutputs(test, fitted), shifts_of(served))
    temperature = served["conditioned"].shift.temperature if name in ("conditioned", "temperature") else 1.0
    return float(row_nll(predictive_of(outputs, name, temperature).probs, test.labels).mean())


@KINDS
def test_labels_teach_where_the_weights_are_elsewhere_and_else_next_to_nothing(
    kind: Corrected, most_left_out: int
) -> None:
    """On new rows the corrected predictive is better than what it corrects, by more than a tenth of a nat."""
    before: PredictiveName = "temperature" if kind == "conditioned" else "laplace"
    conditioning, _, test = problem(0.5, most_left_out)
    assert nll_of(conditioning, test, kind) < nll_of(conditioning, test, before) - 0.1
    conditioning, _, test = problem(0.0, most_left_out)
    assert nll_of(conditioning, test, kind) == pytest.approx(nll_of(conditioning, test, before), abs=0.02)


def test_no_row_is_answered_by_its_own_label(most_left_out: int) -> None:
    """The label of one row is turned: its fold's answers stay, every other fold's change."""
    conditioning, outputs, _ = problem(0.5, most_left_out)
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


@KINDS
def test_a_fold_is_answered_as_new_rows_are(kind: Corrected, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by what is served of the other folds alone: the held-out rows' states are in no moment of the kernel."""
    conditioning = problem(0.5)[0]
    trained, split = conditioning.trained, conditioning.split
    fit, answered = fold_rows(len(split), FOLDS, SETTINGS.seed)[0]
    alone = replace(trained, projected=trained.projected.take(fit))
    served = Conditioning.of(alone, taken(split, fit)).served(kind)
    held_out = taken(split, answered)
    new = SplitOutputs(held_out, replace(trained, projected=held_out.projected))
    new = corrected(new, {kind: served.shift})
    expected = predictive_of(new, kind, served.shift.temperature)
    alike = conditioning.predictive(kind, fit, answered, lambda: trained.prior)
    torch.testing.assert_close(alike.probs, expected.probs, rtol=0, atol=1e-8)
    # Rows that are many, in folds that alone would be few: what certifies is found as what is served.
    found = []
    for most in (0, len(fit) * (CLASSES - 1)):
        monkeypatch.setattr(choice, "MOST_LEFT_OUT", most)
        found.append(conditioning.predictive(kind, fit, answered, lambda: trained.prior).probs)
    assert torch.equal(*found)


def test_thresholds_and_recommendation_come_from_the_folds() -> None:
    """What is recorded of the predictives is measured on answers without the row, and they win where they should."""
    conditioning, outputs, _ = problem(0.5)
    found, scores = calibrate(SETTINGS, outputs, conditioning)
    held_out = out_of_fold(SETTINGS, outputs, prior_without(SETTINGS, outputs), conditioning)
    for kind in CONDITIONED:
        record, probs = found.predictives[kind], held_out[kind].probs
        assert record.nll == pytest.approx(float(row_nll(probs, outputs.split.labels).mean()))
        assert record.nll < found.predictives["laplace"].nll
        assert record.temperature == (outputs.temperature if kind == "conditioned" else 1.0)
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
            moved = jacobians.hidden.double() @ one.shift.weights + one.shift.constant
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
            # Labels correct the answer, and not what the trained weights say.
            at_map = class_probs(jacobians.logits, batch.class_mask)[0]
            torch.testing.assert_close(torch.tensor(answer.arrays.map_probs).double(), at_map, rtol=0, atol=1e-4)


def test_equal_prompts_condition_as_by_a_dense_reference(
    classifier: laplora.Classifier, rows: dict[str, list[dict[str, Any]]]
) -> None:
    """A question that comes again, in another case or with another label, is left out with its twin."""
    given = rows["calibration"]
    again = [{**given[0], "id": "case", "text": f" {given[0]['text'].upper()}"}, {**given[1], "id": "label"}]
    again[1]["label"] = next(label for label in classifier.labels if label != given[1]["label"])
    with pytest.warns(LaploraWarning, match="1 rows repeat another row's prompt with another label"):
        fit = laplora.fit(classifier, rows["train"], given + again, progress=False).fit
    split, one = fit.calibration, fit.conditioned["conditioned"]
    assert split.groups is not None
    assert split.groups.tolist() == [*range(len(given)), 0, 1]
    assert split.last is not None
    contrasts = split.projected.contrast_mean.double() / one.shift.temperature
    mean = log_contrasts(class_probs(contrast_logits(contrasts), split.class_mask), split.class_mask)
    states = LastStates(split.last, class_probs(split.logits, split.class_mask), fit.posterior.rows)
    kernel = Kernel(states.layer(), one.precision, one.bias).dense()
    mode = posterior_mode(kernel, mean, split.labels, split.class_mask)
    left_out = dense_left_out(kernel, mode, mean, split.groups)
    torch.testing.assert_close(one.left_out, left_out - mean, rtol=0, atol=1e-6)
    served = one.shift.of(split.last.double())
    torch.testing.assert_close(served, torch.einsum("mcnd,nd->mc", kernel, mode.alpha), rtol=0, atol=1e-6)
    assert fit.calibrated.calibration.rows == len(given) + 2


@KINDS
@pytest.mark.parametrize("always", [0, 30])
def test_a_twins_label_answers_nobody(kind: Corrected, always: int, most_left_out: int) -> None:
    """The label of a row is turned: its group's answers stay, also where the row conditions every fold."""
    conditioning = problem(0.5, most_left_out)[0]
    groups = torch.arange(len(conditioning.split))
    groups[[40, 61]] = 3
    labels = conditioning.split.labels.clone()
    labels[3] = (labels[3] + 1) % CLASSES
    first = replace(conditioning.split, groups=groups)
    fit, answered = next(
        (fit, answered)
        for fit, answered in fold_rows(len(groups) - always, groups=groups[always:])
        if 40 - always in answered
    )
    assert 61 - always in answered
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
        read_shifts(path, dict.fromkeys(CONDITIONED, 1.5), WIDTH, CLASSES - 1)


def examples(count: int) -> list[Example]:
    return [Example(str(number), {"text": f"text {number}"}, 0, 2) for number in range(count)]


def test_where_it_cannot_be_it_is_off_and_says_why(classifier: laplora.Classifier) -> None:
    """A fit goes on without it; asked to serve it, it refuses."""
    given = examples(MOST + 1)
    with pytest.warns(LaploraWarning, match="conditioned is off: .*more than"):
        found = possible_conditioning(classifier, FitSettings(), given)
    assert not set(found.predictives.names) & set(CONDITIONED)
    for kind in CONDITIONED:
        wanted = FitSettings.model_validate({"predictives": {"serve": kind}})
        with pytest.raises(ConfigError, match="more than"):
            possible_conditioning(classifier, wanted, given)
    assert possible_conditioning(classifier, FitSettings(), examples(20)) == FitSettings()


def test_what_cannot_be_computed_is_off_and_the_fit_goes_on(
    classifier: laplora.Classifier, rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that no kernel fits, and a prior that is only reported; where they are to be served it is an error."""
    monkeypatch.setattr(mode, "_HALVINGS", 0)
    off = {"conditioned": False}

    def of_settings(**settings: Any) -> laplora.CalibratedPosterior:
        chosen = FitSettings.model_validate(settings)
        return laplora.fit(classifier, rows["train"], rows["calibration"], settings=chosen, progress=False)

    with pytest.warns(LaploraWarning, match="conditioned is off: no kernel leaves a row out"):
        found = of_settings()
    assert set(found.predictives) == {"map", "temperature", "laplace"}
    assert not found.fit.conditioned
    assert not found.fit.settings.predictives.conditioned
    with pytest.raises(ConfigError, match="serve: conditioned cannot be: no kernel leaves a row out"):
        of_settings(predictives={"serve": "conditioned"})

    def no_evidence(*_: Any) -> Any:
        raise NonFiniteError("too large")

    monkeypatch.setattr(priors, "choose_by_evidence", no_evidence)
    with pytest.warns(LaploraWarning, match=r"no prior by evidence \(group\) is reported: too large"):
        assert {one.method for one in of_settings(predictives=off).fit.choices} == {"validation"}
    with pytest.raises(NonFiniteError, match="too large"):
        of_settings(laplace={"prior": "evidence"}, predictives=off)
