"""Covariances distilled into a forward pass's states: what is learnt, what is held out, what comes out."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from laplora.errors import ArtifactCorruptError, DataError, NonFiniteError
from laplora.jacobians.states import States
from laplora.predictive import distilled as module
from laplora.predictive.distilled import Distillation, distill, from_logarithms, gaussian_kernel, logarithms
from laplora.predictive.distilled_error import log_error, log_traces
from laplora.predictive.distilled_file import ERROR_TENSORS, distilled_tensors, read_distilled

CLASSES, LAYERS, HIDDEN = 3, 2, 12


def problem(count: int = 160, seed: int = 0) -> tuple[States, torch.Tensor]:
    """Return states, and covariances that are a smooth function of them."""
    draw = torch.Generator().manual_seed(seed)
    latent = torch.randn(count, 3, generator=draw, dtype=torch.float64)
    mix = torch.randn(3, LAYERS * HIDDEN, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    noise = torch.randn(count, LAYERS * HIDDEN, generator=draw, dtype=torch.float64)
    hidden = (latent @ mix + 0.05 * noise + 1).float().view(count, LAYERS, HIDDEN)
    mean = torch.randn(count, CLASSES - 1, generator=draw)
    entries = torch.stack([latent[:, 0].sin(), 0.3 * latent[:, 1], 0.5 * latent[:, 2].abs() - 1], 1)
    tokens = torch.randint(5, 40, (count,), generator=draw).float()
    return States((1, 4), hidden, mean, tokens), from_logarithms(entries)


@cache
def fitted(count: int = 160, most: int = module.MOST_INPUTS) -> Distillation:
    """Return the fit of so many inputs, a quarter of them calibration rows; at most ``most`` are used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_INPUTS", most)
        return distill(*problem(count), torch.arange(count), (1, 4), seed=0, class_mask=all_classes(count // 4))


def all_classes(rows: int) -> torch.Tensor:
    """Return the mask of rows that can have every class."""
    return torch.ones(rows, CLASSES, dtype=torch.bool)


def test_matrix_logarithms() -> None:
    draw = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariances = draw @ draw.mT
    torch.testing.assert_close(from_logarithms(logarithms(covariances)), covariances)
    assert logarithms(covariances).shape == (6, 10)
    column = torch.tensor([[[1.0], [2.0]], [[0.0], [0.0]]], dtype=torch.float64)
    singular = column @ column.mT
    torch.testing.assert_close(from_logarithms(logarithms(singular)), singular, atol=1e-4, rtol=1e-4)


def test_what_is_learnt_holds_on_new_inputs() -> None:
    states, exact = problem(80, seed=5)
    predicted = fitted().predictor.estimate(states).covariance
    constant = from_logarithms(logarithms(problem()[1]).mean(0, keepdim=True)).expand_as(exact)
    mask = all_classes(80)
    assert log_error(predicted, exact, mask) < 0.4 * log_error(constant, exact, mask)
    torch.testing.assert_close(predicted, predicted.mT)
    assert bool((torch.linalg.eigvalsh(predicted) > 0).all())


def test_the_kernel_errs_least_on_inputs_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other length and ridge at the grid's corners does better; rounding of the support is 1e-3 of an error."""
    entries = logarithms(problem()[1])
    best = float((logarithms(fitted().held_out) - entries).square().sum())
    for length in (module._LENGTHS[0], module._LENGTHS[-1]):
        for ridge in (module._RIDGES[0], module._RIDGES[-1]):
            monkeypatch.setattr(module, "_LENGTHS", (length,))
            monkeypatch.setattr(module, "_RIDGES", (ridge,))
            other = distill(*problem(), torch.arange(160), (1, 4), seed=0, class_mask=all_classes(40)).held_out
            assert float((logarithms(other) - entries).square().sum()) > best * (1 - 1e-3)
            monkeypatch.undo()


def test_groups_are_held_out_together() -> None:
    """What an input's group says has no part in its held-out covariance."""
    states, covariances = problem()
    groups = torch.arange(160).where(torch.arange(160) < 8, torch.arange(160) // 4 + 100)
    before = distill(states, covariances, groups, (0,), seed=0, class_mask=all_classes(8)).held_out
    changed = covariances.clone()
    changed[8:12] *= 1.01  # too little to change which kernel is chosen
    after = distill(states, changed, groups, (0,), seed=0, class_mask=all_classes(8)).held_out
    torch.testing.assert_close(after[8:12], before[8:12], rtol=1e-6, atol=0)
    assert not torch.allclose(after, before, rtol=1e-6, atol=0)


def test_more_inputs_than_a_fit_uses() -> None:
    found = fitted(most=100)
    assert len(found.predictor.support) == 100
    states, exact = problem()
    assert found.held_out.shape == exact.shape
    same = (found.predictor.estimate(states).covariance - found.held_out).abs().amax((1, 2)) == 0
    assert int(same.sum()) == 60


def test_refusals() -> None:
    states, covariances = problem(20)
    with pytest.raises(DataError, match="do not fit together"):
        distill(states, covariances[:19], torch.arange(20), (0,), seed=0, class_mask=all_classes(5))
    with pytest.raises(NonFiniteError):
        distill(states, covariances * torch.nan, torch.arange(20), (0,), seed=0, class_mask=all_classes(5))
    with pytest.raises(DataError, match="4 different inputs"):
        distill(states, covariances, torch.arange(20).clamp_max(3), (0,), seed=0, class_mask=all_classes(3))
    for rows, groups in ((0, torch.arange(20)), (19, torch.arange(20)), (5, torch.arange(20).clamp_min(4))):
        with pytest.raises(DataError, match=f"{rows} calibration rows of 20 inputs"):
            distill(states, covariances, groups, (0,), seed=0, class_mask=all_classes(rows))


# The error of each row.


def test_the_variance_is_the_gaussian_processs() -> None:
    """Against the conditional of the joint distribution of the support, with noise, and a new row."""
    predictor = fitted(60).predictor
    states, _ = problem(9, seed=3)
    kernel, inside = predictor._kernel(states), gaussian_kernel(predictor.support, predictor.support)
    noisy = inside + float(predictor.error.ridge) * torch.eye(60, dtype=torch.float64)
    expected = torch.stack([1 - row @ torch.linalg.inv(noisy) @ row for row in kernel])
    estimate = predictor.estimate(states)
    torch.testing.assert_close(predictor.error.variance(kernel), expected, rtol=1e-8, atol=1e-10)
    spread = predictor.error.scale * (expected + predictor.error.ridge).sqrt()
    torch.testing.assert_close(estimate.log_error, spread, rtol=1e-8, atol=1e-10)


def test_far_from_all_inputs_nothing_is_known() -> None:
    """There the prediction is the mean."""
    predictor = fitted().predictor
    states, _ = problem(40, seed=3)
    unlike = States(states.layers, -states.hidden.flip(0, 1, 2) * 7, states.contrast_mean + 500, states.tokens)
    near, far = predictor.estimate(states), predictor.estimate(unlike)
    torch.testing.assert_close(far.covariance, from_logarithms(predictor.mean[None]).expand_as(far.covariance))
    nothing = predictor.error.log_error(torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(far.log_error, nothing)
    assert float(far.log_error.min()) > float(near.log_error.max())


def test_left_out_rows_are_those_of_fits_without_them() -> None:
    """The closed form against leaving each row out, with the same kernel, ridge and mean."""
    predictor, first = fitted(60).predictor, 15
    error, kernel = predictor.error, gaussian_kernel(predictor.support, predictor.support)
    ridge, mean = float(error.ridge), predictor.mean.double()
    coefficients = predictor.coefficients.double()
    exact = kernel @ coefficients + ridge * coefficients + mean
    standardised = []
    for i in range(first):
        rest = torch.tensor([j for j in range(60) if j != i])
        noisy = kernel[rest][:, rest] + ridge * torch.eye(59, dtype=torch.float64)
        row = kernel[i, rest]
        guess = row @ torch.linalg.solve(noisy, exact[rest] - mean) + mean
        variance = float(1 - row @ torch.linalg.solve(noisy, row))
        one = all_classes(1)
        off = log_traces(from_logarithms(guess[None]), one) - log_traces(from_logarithms(exact[i][None]), one)
        standardised.append(float(off) / (variance + ridge) ** 0.5)
    expected = math.sqrt(sum(e * e for e in standardised) / first)
    assert float(error.scale) == pytest.approx(expected, rel=1e-4)


def test_errors_have_unit_scale_on_rows_of_no_part() -> None:
    states, exact = problem(1000)
    part, rest = torch.arange(400), torch.arange(400, 1000)
    predictor = distill(states.take(part), exact[:400], part, (1, 4), seed=0, class_mask=all_classes(150)).predictor
    estimate, mask = predictor.estimate(states.take(rest)), all_classes(600)
    errors = (log_traces(estimate.covariance, mask) - log_traces(exact[rest], mask)) / estimate.log_error
    assert 0.7 < float(errors.square().mean().sqrt()) < 1.4


def test_calibration_rows_have_no_part_in_the_directions() -> None:
    states, covariances = problem(80)
    moved = States(states.layers, states.hidden.clone(), states.contrast_mean, states.tokens)
    moved.hidden[:20] = moved.hidden[:20].flip(2)
    one, other = (
        distill(s, covariances, torch.arange(80), (0,), seed=0, class_mask=all_classes(20)).predictor
        for s in (states, moved)
    )
    assert torch.equal(one.center, other.center)
    ratio = one.directions.double() / other.directions.double()  # the kernel's length is another
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=5e-3, atol=0)


def test_impossible_classes_have_no_part_in_the_error() -> None:
    """Of rows with two of three classes: the variance of the difference of these two logits."""
    draw = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariances, mask = draw @ draw.mT, all_classes(5)
    mask[:, 2] = False
    # The first column of the contrasts is the difference of the first two logits, over the root of two.
    torch.testing.assert_close(log_traces(covariances, mask), covariances[:, 0, 0].log())
    torch.testing.assert_close(
        log_traces(covariances, all_classes(5)), covariances.diagonal(dim1=1, dim2=2).sum(1).log()
    )


# The file.


def written(folder: Path, layers: str = "[1, 4]", **changes: torch.Tensor | None) -> Path:
    """Write a predictor, some of its tensors changed or, by None, left out."""
    tensors = distilled_tensors(fitted(40).predictor)[0] | changes
    path = folder / "distilled.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, path, {"layers": layers})
    return path


def test_a_file_gives_the_same_answers(tmp_path: Path) -> None:
    predictor = fitted(40).predictor
    assert distilled_tensors(predictor)[1] == {"layers": "[1, 4]"}
    again = read_distilled(written(tmp_path), classes=CLASSES, hidden=HIDDEN, layers=5)
    assert again.layers == (1, 4)
    states, _ = problem(5, seed=8)
    one, other = again.estimate(states), predictor.estimate(states)
    for name in ("covariance", "log_error"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12)


def refused(path: Path) -> None:
    with pytest.raises(ArtifactCorruptError, match=rf"{path.name}.*(cannot be read|should|its layers)"):
        read_distilled(path, classes=CLASSES, hidden=HIDDEN, layers=5)


@pytest.mark.parametrize("name", [*module.TENSORS, *ERROR_TENSORS])
def test_a_broken_tensor(tmp_path: Path, name: str) -> None:
    tensor = distilled_tensors(fitted(40).predictor)[0][name]
    spoilt = tensor.contiguous().clone()
    spoilt.view(-1)[0] = torch.nan
    for broken in (None, spoilt, tensor[..., None], tensor.long()):
        refused(written(tmp_path, **{name: broken}))


def test_a_support_that_would_fill_the_memory_or_has_no_kernel(tmp_path: Path) -> None:
    support = distilled_tensors(fitted(40).predictor)[0]["support"]
    refused(written(tmp_path, support=torch.zeros(100_000, support.shape[1])))
    refused(written(tmp_path, support=torch.full(support.shape, 1e308, dtype=torch.float64)))


@pytest.mark.parametrize("layers", ["[]", "[5]", "[true]", "{}", "[1", '["1"]', "[1]"])
def test_broken_layers(tmp_path: Path, layers: str) -> None:
    refused(written(tmp_path, layers))


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "none")


@pytest.mark.parametrize(("name", "value"), [("ridge", 0.0), ("ridge", -1.0), ("error_scale", -0.1)])
def test_an_error_that_is_none(tmp_path: Path, name: str, value: float) -> None:
    refused(written(tmp_path, **{name: torch.tensor(value).double()}))
