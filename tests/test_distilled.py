"""Covariances distilled into a forward pass's states: what is learnt, what is held out, what comes out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from laplora import distilled as module
from laplora.distilled import (
    Distillation,
    DistilledCovariance,
    distill,
    from_logarithms,
    log_error,
    logarithms,
)
from laplora.distilled_file import distilled_tensors, read_distilled
from laplora.errors import ArtifactCorruptError, DataError, NonFiniteError
from laplora.states import States

CLASSES, LAYERS, HIDDEN = 3, 2, 12


def problem(count: int = 160, seed: int = 0) -> tuple[States, torch.Tensor]:
    """Return states, and covariances that are a smooth function of them."""
    draw = torch.Generator().manual_seed(seed)
    latent = torch.randn(count, 3, generator=draw, dtype=torch.float64)
    mix = torch.randn(3, LAYERS * HIDDEN, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    hidden = (
        latent @ mix + 0.05 * torch.randn(count, LAYERS * HIDDEN, generator=draw, dtype=torch.float64) + 1
    ).float()
    mean = torch.randn(count, CLASSES - 1, generator=draw)
    entries = torch.stack([latent[:, 0].sin(), 0.3 * latent[:, 1], 0.5 * latent[:, 2].abs() - 1], 1)
    tokens = torch.randint(5, 40, (count,), generator=draw).float()
    return States(hidden.view(count, LAYERS, HIDDEN), mean, tokens), from_logarithms(entries)


def fitted(count: int = 160, groups: torch.Tensor | None = None) -> Distillation:
    states, covariances = problem(count)
    return distill(states, covariances, torch.arange(count) if groups is None else groups, (1, 4), seed=0)


def test_matrix_logarithms() -> None:
    draw = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariances = draw @ draw.mT
    torch.testing.assert_close(from_logarithms(logarithms(covariances)), covariances)
    assert logarithms(covariances).shape == (6, 10)
    one = torch.tensor([[[2.0]]], dtype=torch.float64)
    assert float(logarithms(one)) == pytest.approx(math.log(2))


def test_a_singular_covariance_has_a_finite_logarithm() -> None:
    column = torch.tensor([[[1.0], [2.0]], [[0.0], [0.0]]], dtype=torch.float64)
    covariances = column @ column.mT
    entries = logarithms(covariances)
    assert bool(entries.isfinite().all())
    torch.testing.assert_close(from_logarithms(entries), covariances, atol=1e-4, rtol=1e-4)


def test_what_is_learnt_holds_on_new_inputs() -> None:
    predictor = fitted().predictor
    states, exact = problem(80, seed=5)
    predicted = predictor.covariance(states)
    constant = from_logarithms(logarithms(problem()[1]).mean(0, keepdim=True)).expand_as(exact)
    assert log_error(predicted, exact) < 0.4 * log_error(constant, exact)
    torch.testing.assert_close(predicted, predicted.mT)
    assert bool((torch.linalg.eigvalsh(predicted) > 0).all())


def test_an_input_far_from_all_others_has_the_mean_logarithm() -> None:
    predictor = fitted().predictor
    states, _ = problem(1, seed=3)
    far = States(-states.hidden.flip(0, 1, 2) * 7, states.contrast_mean + 500, states.tokens)
    torch.testing.assert_close(predictor.covariance(far), from_logarithms(predictor.mean[None]))


def test_groups_are_held_out_together() -> None:
    """What an input's group says has no part in its held-out covariance."""
    states, covariances = problem()
    groups = torch.arange(160) // 4
    before = distill(states, covariances, groups, (0,), seed=0).held_out
    changed = covariances.clone()
    changed[8:12] *= 1.01  # too little to change which kernel is chosen
    after = distill(states, changed, groups, (0,), seed=0).held_out
    torch.testing.assert_close(after[8:12], before[8:12], rtol=1e-6, atol=0)
    assert not torch.allclose(after, before, rtol=1e-6, atol=0)


def test_held_out_is_worse_than_seen() -> None:
    """Otherwise nothing was held out."""
    found = fitted()
    states, exact = problem()
    assert log_error(found.held_out, exact) > 1.1 * log_error(found.predictor.covariance(states), exact)


def test_more_inputs_than_a_fit_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 100)
    found = fitted()
    assert len(found.predictor.support) == 100
    states, exact = problem()
    assert found.held_out.shape == exact.shape
    same = (found.predictor.covariance(states) - found.held_out).abs().amax((1, 2)) == 0
    assert int(same.sum()) == 60


def test_same_inputs_same_predictor() -> None:
    one, other = fitted().predictor, fitted().predictor
    assert all(torch.equal(getattr(one, n), getattr(other, n)) for n in module.TENSORS)


def test_a_row_does_not_depend_on_its_batch() -> None:
    predictor = fitted().predictor
    states, _ = problem(7, seed=2)
    together = predictor.covariance(states)
    alone = torch.cat([predictor.covariance(states.take(torch.tensor([i]))) for i in range(7)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=0)


def test_refusals() -> None:
    states, covariances = problem(20)
    with pytest.raises(DataError, match="do not fit together"):
        distill(states, covariances[:19], torch.arange(20), (0,), seed=0)
    with pytest.raises(DataError, match="4 different inputs"):
        distill(states, covariances, torch.arange(20) % 4, (0,), seed=0)
    with pytest.raises(NonFiniteError):
        distill(states, covariances * torch.nan, torch.arange(20), (0,), seed=0)


# The file.


def written(folder: Path) -> tuple[Path, DistilledCovariance]:
    predictor = fitted(40).predictor
    path = folder / "distilled.safetensors"
    save_file(
        {k: v.contiguous() for k, v in distilled_tensors(predictor)[0].items()}, path, distilled_tensors(predictor)[1]
    )
    return path, predictor


def read(path: Path) -> DistilledCovariance:
    return read_distilled(path, classes=CLASSES, hidden=HIDDEN, layers=5)


def test_a_file_gives_the_same_answers(tmp_path: Path) -> None:
    path, predictor = written(tmp_path)
    again = read(path)
    states, _ = problem(5, seed=8)
    assert again.layers == (1, 4)
    torch.testing.assert_close(again.covariance(states), predictor.covariance(states), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", module.TENSORS)
@pytest.mark.parametrize("fault", ["missing", "nan", "shape", "integers"])
def test_a_broken_tensor(tmp_path: Path, name: str, fault: str) -> None:
    path, predictor = written(tmp_path)
    tensors, metadata = load_file(path), distilled_tensors(predictor)[1]
    tensor = tensors.pop(name)
    if fault == "nan":
        tensor.view(-1)[0] = torch.nan
    broken = {"nan": tensor, "shape": tensor[..., None], "integers": tensor.long(), "missing": None}[fault]
    if broken is not None:
        tensors[name] = broken
    save_file(tensors, path, metadata)
    with pytest.raises(ArtifactCorruptError):
        read(path)


@pytest.mark.parametrize("layers", ["[]", "[5]", "[true]", "{}", "[1", '["1"]', "[1]"])
def test_broken_layers(tmp_path: Path, layers: str) -> None:
    path, _ = written(tmp_path)
    save_file(load_file(path), path, {"layers": layers})
    with pytest.raises(ArtifactCorruptError):
        read(path)


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "distilled.safetensors").write_bytes(b"\x08\x00")
    for name in ("distilled.safetensors", "other.safetensors"):
        with pytest.raises(ArtifactCorruptError, match="cannot be read"):
            read(tmp_path / name)
